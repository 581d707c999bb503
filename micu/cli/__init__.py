"""The command line tools `micu-train` and `micu-eval`; heavy imports wait until they are used."""


def train_main() -> None:
    """Entry point of `micu-train`."""
    from micu.base.process import guard_screen
    from micu.cli.train import main

    guard_screen()
    main()


def eval_main() -> None:
    """Entry point of `micu-eval`."""
    from micu.base.process import guard_screen
    from micu.cli.evaluate import main

    guard_screen()
    main()
