"""`brnf seeds` as a job: base seeds of the training images. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/seeds.py --run s3://bucket/base --shards s3://bucket/train_aug --out s3://bucket/seeds
"""

import sys

from brnf.cli import main

main(["seeds", *sys.argv[1:]])
