"""`python -m diffkit`, which is what `accelerate launch -m diffkit` runs."""

from diffkit.cli import main

if __name__ == "__main__":
    main()
