"""`python -m megatron_vr` is `megatron-vr`."""

from megatron_vr.cli import main

if __name__ == "__main__":
    main()
