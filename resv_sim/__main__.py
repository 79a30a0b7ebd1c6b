"""`python -m resv_sim` is the command `resv-sim`."""

from resv_sim.cli import COMMAND, main

if __name__ == "__main__":
    main(prog_name=COMMAND)
