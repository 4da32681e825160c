r"""`brnf train` as a job: the base network or BRNF. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/train.py --config voc_resnet50 --method sipe \
    --shards s3://bucket/train_aug --out s3://bucket/base
"""

import sys

from brnf.cli import main

main(["train", *sys.argv[1:]])
