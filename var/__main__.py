"""The `var` command where only modules can be named: `torchrun -m var`, `accelerate launch -m var`, `python -m var`."""

from var.cli.app import main

if __name__ == "__main__":
    main()
