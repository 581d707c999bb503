"""CODIS: clips of one modality predict how a teacher of another assigns them to codes.

Of a clip i in modality m, h_i(m) is the student's direction and g_i(m) the teacher's, c_k are the
directions of the K codes, and t_i(m) is the clip's row of the transport plan, as shares of 1:

    T(m)     = argmin_T <T, 1 - g(m) c'> - epsilon H(T), rows of equal mass, columns of 1 / K
    p_ik(n)  = softmax_k(h_i(n) c_k / gamma)
    L_assign = mean_{m!=n,i} -sum_k t_ik(m) log p_ik(n) + mean_{m,i} sum_k t_ik(m) (1 - g_i(m) c_k)
    L_ica    = mean_{m,n,i} -log(exp(h_i(m) g_i(n) / tau) / sum_j exp(h_i(m) g_j(n) / tau))

T has no gradient; j runs over batch and queue. The loss is L_assign + `contrast_weight` L_ica.

Source: section 3 of Duan et al., *Multi-modal alignment using representation codebook* (CODIS),
CVPR 2022 (arXiv 2203.00048); no code of the authors is public. The queue for the transport is that
of Caron et al., *SwAV*, NeurIPS 2020. The teacher's momentum rises as the decay of TensorFlow's
`ExponentialMovingAverage` does when it is told the number of updates.
"""

import copy
import hashlib
import math

import torch
from torch import Tensor, nn

from micu.config.sections import TrainConfig
from micu.data.dataset import Batch
from micu.losses.contrastive import info_nce_pairs, unit_rows
from micu.losses.terms import LOSSES, Draws, Loss
from micu.model.micu import MICU, MICUOutput, embed, mean_over_steps, read_words


@torch.no_grad()
def sinkhorn(cost: Tensor, row_mass: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Entropic optimal transport from rows to columns of equal mass, in the log domain.

    The first iteration is by logarithms. The next ones rescale the plan that it ends with, whose
    scalings are about 1: they are products of a matrix and a vector, and a tenth of the time. Where
    a scaling has drifted out of its type's range, all is done by logarithms.

    Args:
        cost: (..., R, K); computed in at least float32.
        row_mass: (R,), sums to 1; a row of mass 0 sends nothing.
        epsilon: Regularisation.
        iterations: Of alternate scaling. It ends with the columns, so that they have exactly equal
            mass, and the rows nearly theirs.

    Returns:
        Transport plan, (..., R, K).

    Reference: Cuturi, NeurIPS 2013; Peyré & Cuturi 2019, section 4.4; absorption into the kernel as
    in Schmitzer, *Stabilized sparse scaling algorithms*, 2019, section 3.1.
    """
    scaled = -cost.to(torch.promote_types(cost.dtype, torch.float32)) / epsilon
    mass = row_mass.to(scaled.dtype)
    plan = _by_logarithms(scaled, mass, 1)
    limits, column = torch.finfo(plan.dtype), 1 / cost.shape[-1]
    smallest = limits.tiny / limits.eps
    columns = torch.ones_like(plan[..., :1, :])
    rows = torch.ones_like(plan[..., :1])
    least = plan.new_ones(())
    for _ in range(iterations - 1):
        # Rows are scaled to their mass, then columns to 1 / K.
        by_row = plan @ columns.mT  # (..., R, 1)
        rows = mass[:, None] / by_row.clamp(min=smallest)
        by_column = rows.mT @ plan  # (..., 1, K)
        columns = column / by_column.clamp(min=smallest)
        least = torch.minimum(least, by_row.where(mass[:, None] > 0, 1).amin())
        least = torch.minimum(least, by_column.amin())
    if least <= smallest:
        return _by_logarithms(scaled, mass, iterations)
    return rows * plan * columns


def _by_logarithms(scaled: Tensor, mass: Tensor, iterations: int) -> Tensor:
    """`sinkhorn`, by the sums' logarithms alone; `scaled` is -cost / epsilon."""
    log_column = -math.log(scaled.shape[-1])
    columns = torch.zeros_like(scaled[..., 0, :])
    rows = torch.zeros_like(scaled[..., 0])
    for _ in range(iterations):
        # The same on logarithms: log u = log mass - log sum_k exp(-cost / epsilon + log v).
        rows = mass.log() - torch.logsumexp(scaled + columns[..., None, :], -1)
        columns = log_column - torch.logsumexp(scaled + rows[..., None], -2)
    return torch.exp(scaled + rows[..., None] + columns[..., None, :])


def assignment_loss(
    student: Tensor,
    codebook: Tensor,
    teacher: Tensor,
    plan: Tensor,
    has_steps: Tensor,
    gamma: float,
) -> Tensor:
    """Swapped prediction of the plan, and what the plan costs.

    Args:
        student: Clips, unit length, (M, B, D).
        codebook: Unit length, (K, D).
        teacher: Clips, unit length, (M, B, D).
        plan: Rows of the transport plan, each scaled to mass 1, (M, B, K).
        has_steps: (B,) bool, True = the clip counts; what the plan has for others is not looked at.
        gamma: Temperature.

    Returns:
        (): the mean over ordered pairs m != n of the cross-entropy between modality m's plan and
        modality n's softmax over codes, and the mean over modalities of the plan's cost, whose
        gradient pulls codes to the teacher's clips. Both are means over clips; 0 without any.
    """
    count, clips = len(student), has_steps.sum().clamp(min=1)
    plan = plan.masked_fill(~has_steps[:, None], 0)
    log_chances = torch.log_softmax(student @ codebook.T / gamma, -1)
    # -sum_k t_ik(m) log p_ik(n) of every pair (m, n), of which those with m != n count.
    crossed = -torch.einsum("mbk,nbk->mn", plan, log_chances) / clips
    swapped = (crossed.sum() - crossed.trace()) / max(1, count * (count - 1))
    # sum_k t_ik(m) (1 - g_i(m) c_k)
    cost = 1 - teacher @ codebook.T
    return swapped + (plan * cost).sum() / (count * clips)


def rising_momentum(momentum: float, step: int) -> float:
    """The teacher's momentum in a step: low at first, so that a short run gets away from its start.

    Args:
        momentum: The highest, [0, 1).
        step: From 0.

    Returns:
        min(momentum, (1 + step) / (10 + step)).

    Reference: `num_updates` of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    return min(momentum, (1 + step) / (10 + step))


class Teacher(nn.Module):
    """A moving average of the encoders, without dropout, and a queue of the clips that it saw.

    Buffers: `queue` (M, Q, D), unit vectors, the newest of which stand before `pushed` modulo Q;
    `clips` (Q,), whose they are; `pushed`, how many there were so far.
    """

    queue: Tensor
    clips: Tensor
    pushed: Tensor

    def __init__(self, model: MICU, config: TrainConfig) -> None:  # noqa: D107
        super().__init__()
        self.word_readers = copy.deepcopy(model.word_readers)
        self.semantic_encoders = copy.deepcopy(model.semantic_encoders)
        self.requires_grad_(False)
        size = config.baselines.transport.queue_size
        shape = (len(config.modalities), size, config.encoder.embed_dim)
        self.register_buffer("queue", torch.zeros(shape))
        self.register_buffer("clips", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def embed_clips(self, batch: Batch, modalities: tuple[str, ...]) -> Tensor:
        """The clips' directions, (M, B, D)."""
        self.eval()
        features = {name: batch.features[name] for name in modalities}
        mask = None if bool(batch.mask.all()) else batch.mask
        steps = embed(self.semantic_encoders, read_words(self.word_readers, features, mask), mask)
        return torch.stack([clip_direction(unit_rows(steps[name]), mask) for name in modalities])

    def others(self, batch: Batch) -> Tensor:
        """Which places of the queue hold a clip that is not of the batch, (Q,) bool."""
        places = torch.arange(len(self.clips), device=self.clips.device)
        return (places < self.pushed) & ~torch.isin(self.clips, self._numbers(batch))

    @torch.no_grad()
    def follow_(self, model: MICU, momentum: float) -> None:
        """Move towards the model's encoders."""
        for mine, theirs in (
            (self.word_readers, model.word_readers),
            (self.semantic_encoders, model.semantic_encoders),
        ):
            for old, new in zip(mine.parameters(), theirs.parameters(), strict=True):
                old.lerp_(new, 1 - momentum)

    @torch.no_grad()
    def push_(self, directions: Tensor, batch: Batch) -> None:
        """Put a batch's clips, (M, B, D), into the queue in place of the oldest.

        Clips without a real step are left out.
        """
        size = len(self.clips)
        real = batch.mask.any(1)
        numbers, directions = self._numbers(batch)[real][-size:], directions[:, real][:, -size:]
        places = (self.pushed + torch.arange(len(numbers), device=numbers.device)) % size
        self.queue[:, places] = directions.to(self.queue.dtype)
        self.clips[places] = numbers
        self.pushed += len(numbers)

    def _numbers(self, batch: Batch) -> Tensor:
        """A number for each clip's id, (B,) int64."""
        hashes = [hashlib.blake2b(name.encode(), digest_size=8) for name in batch.clip_ids]
        numbers = [int.from_bytes(found.digest(), "little", signed=True) for found in hashes]
        return torch.tensor(numbers, device=self.clips.device)


def clip_direction(steps: Tensor, mask: Tensor | None) -> Tensor:
    """Direction of the mean of a clip's real steps, (B, T, D) to (B, D)."""
    return unit_rows(mean_over_steps(steps, mask))


@LOSSES.register("transport")
class TransportLoss(Loss):
    """Assignment to codes by optimal transport, and contrast with the teacher's clips.

    The codes are the quantizer's own, learnt by this loss (`quantizer.learning=gradient`).

    Differs: any modalities, averaged over ordered pairs; a clip is the mean of its steps, each of
    length 1 before it; the codebook of the loss is that of the quantizer; plans are made over batch
    and queue, since uniform use of K codes by fewer clips than that means little; until the queue
    is full, over what is there. A plan's rows are scaled to 1 before they are predicted: Sinkhorn
    ends with the columns, and leaves the rows a little off. What the queue holds of the
    batch's own clips is left out: in a small data set a clip would be its own negative. The
    contrast has every ordered pair, a modality with itself included, averaged. The momentum rises,
    where CODIS has one: 0.995 from the first step on would leave half of the random start in the
    teacher after 140 steps. CODIS's language and matching losses have no place here.
    """

    teacher: Teacher

    def start_(self, model: MICU, steps: int) -> None:
        """The teacher starts as the model."""
        self.teacher = Teacher(model, self.config)

    def compute(self, output: MICUOutput, batch: Batch, draws: Draws) -> Tensor:
        """Assignment and weighted contrast, ()."""
        settings, mask = self.config.baselines.transport, batch.mask
        student = self.stack(
            {name: clip_direction(q.semantic, mask) for name, q in output.quantized.items()}
        )
        teacher = self.teacher.embed_clips(batch, self.config.modalities)
        codebook = unit_rows(output.codebook)
        known = torch.cat([teacher, self.teacher.queue], 1)  # (M, B + Q, D)
        has_steps = mask.any(1)
        has_clip = torch.cat([has_steps, self.teacher.others(batch)])
        mass = has_clip.to(known.dtype) / has_clip.sum().clamp(min=1)
        with torch.autocast(mask.device.type, enabled=False):
            cost = 1 - known @ codebook.detach().to(known.dtype).T
            plan = sinkhorn(cost, mass, settings.epsilon, settings.iterations)
        rows = plan[:, : len(mask)].to(student.dtype)
        rows = rows / rows.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        assigned = assignment_loss(student, codebook, teacher, rows, has_steps, settings.gamma)
        contrast = info_nce_pairs(
            student[:, None],
            known[:, None],
            tau=settings.tau,
            query_mask=has_steps[None],
            key_mask=has_clip[None],
        )
        return assigned + settings.contrast_weight * contrast.mean()

    def after_step_(self, model: MICU, output: MICUOutput, batch: Batch, draws: Draws) -> None:
        """The teacher follows the model, and the queue takes in the batch's clips."""
        momentum = rising_momentum(self.config.baselines.transport.momentum, draws.step)
        self.teacher.follow_(model, momentum)
        self.teacher.push_(self.teacher.embed_clips(batch, self.config.modalities), batch)
