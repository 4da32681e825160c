"""`brnf pipeline` as a job: all stages in one. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/pipeline.py --config voc_resnet50 --root /data/VOC2012 --out s3://bucket/run
"""

import sys

from brnf.cli import main

main(["pipeline", *sys.argv[1:]])
