"""Which of several processes this one is, and what it computes on."""

import pytest

from micu.base.errors import ConfigError
from micu.train.processes.place import Place, find_place, first_host
from micu.train.processes.world import join

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08,11]",
}


def test_without_variables_a_process_is_alone():
    assert find_place({}) == Place()


def test_one_process_of_one_needs_no_address():
    assert find_place({"RANK": "0", "WORLD_SIZE": "1"}) == Place()


def test_torchrun_says_the_place_and_counts_before_slurm():
    place = find_place({**SLURM, **TORCHRUN})

    assert (place.rank, place.size, place.local_rank, place.restarts) == (3, 4, 1, 2)
    assert place.meet_at == "env://"
    assert place.launcher.startswith("x ")
    assert place.launcher == find_place(TORCHRUN).launcher


def test_a_task_of_srun_meets_the_others_at_the_first_node():
    assert find_place(SLURM) == Place(5, 8, 1, f"tcp://gpu07:{12000 + (31 * 1000 + 2) % 20000}")


def test_a_master_that_is_named_is_met_there():
    named = {**SLURM, "MASTER_ADDR": "login", "MASTER_PORT": "99"}

    assert find_place(named).meet_at == "tcp://login:99"


def test_a_batch_script_without_srun_is_one_process(caplog):
    script = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}

    assert find_place(script) == Place()
    assert "no task of srun" in caplog.text
    assert find_place({**SLURM, "SLURM_NTASKS": "1"}) == Place()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE: expected a number, got None"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK: expected a number, got 'x'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR, MASTER_PORT: expected where process 0 .* start .* with torchrun or srun",
        ),
        ({**TORCHRUN, "MASTER_PORT": "x"}, "MASTER_PORT: expected .* got 'x'"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_LOCALID: expected a number"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "export MASTER_ADDR=HOST"),
        (
            {
                **TORCHRUN,
                "TORCHELASTIC_MAX_RESTARTS": "1",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
    ],
)
def test_variables_that_make_no_place_are_named(variables, message):
    with pytest.raises(ConfigError, match=message):
        find_place(variables)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu08", "gpu07"),
        ("gpu[07-09,12],login", "gpu07"),
        ("a[1-2]b[03,4],c", "a1b03"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list_as_slurm_writes_it(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("place", "typed", "gpus", "device"),
    [
        (Place(), "cuda:3", 1, "cuda:3"),
        (Place(1, 2, 1), "auto", 2, "cuda:1"),
        (Place(1, 2, 1), "cuda", 2, "cuda:1"),
        (Place(1, 2, 1), "auto", 0, "cpu"),
        (Place(1, 2, 1), "cpu", 2, "cpu"),
        (Place(1, 2, 1, "tcp://a:1"), "auto", 1, "cuda:0"),
    ],
)
def test_every_process_takes_the_device_of_its_place(place, typed, gpus, device):
    assert place.device_name(typed, gpus) == device


@pytest.mark.parametrize(
    ("typed", "gpus", "message"),
    [
        ("cuda:0", 2, "expected auto, cpu or cuda with 2 processes, got 'cuda:0'"),
        ("mps", 0, "got 'mps'"),
        ("auto", 1, "process 1 of this machine has no GPU, there are 1"),
        ("cuda", 0, "process 1 of this machine has no GPU, there are 0"),
    ],
)
def test_a_device_that_cannot_serve_every_process_is_refused(typed, gpus, message):
    with pytest.raises(ConfigError, match=message):
        Place(1, 2, 1).device_name(typed, gpus)


def test_a_process_alone_makes_its_gpu_the_current_one_too(monkeypatch):
    made = []
    monkeypatch.setattr("torch.cuda.set_device", made.append)
    for device in ("cuda:1", "cpu"):
        with join(Place(), device) as world:
            assert world.size == 1
    assert [str(device) for device in made] == ["cuda:1"]
