r"""`brnf tune` as a job: a sweep over BRNF's fields. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/tune.py --space tune_spaces/brnf_core.yaml --config voc_resnet50 \
    --root /data/VOC2012 --out s3://bucket/sweep
"""

import sys

from brnf.cli import main

main(["tune", *sys.argv[1:]])
