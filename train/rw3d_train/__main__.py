"""`python -m rw3d_train`, for torchrun: `torchrun --nproc-per-node 2 -m rw3d_train run …`."""

from rw3d_train.cli import main

if __name__ == "__main__":
    main()
