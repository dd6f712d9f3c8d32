"""Generate images: `python sample.py --class 207`. `python sample.py --help` lists the options."""

from var.cli.sample import main

if __name__ == "__main__":
    main()
