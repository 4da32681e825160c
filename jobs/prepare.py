"""`brnf prepare` as a job: a data set's split to shards. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/prepare.py voc --root /data/VOC2012 --split train_aug --shards s3://bucket/train_aug
"""

import sys

from brnf.cli import main

main(["prepare", *sys.argv[1:]])
