"""`brnf irn` as a job: the boundary network of the random walk. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/irn.py --shards s3://bucket/train_aug --seeds s3://bucket/seeds --out s3://bucket/irn
"""

import sys

from brnf.cli import main

main(["irn", *sys.argv[1:]])
