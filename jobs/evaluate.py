"""`brnf evaluate` as a job: labels against masks. Stopped, it goes on when submitted again.

ray job submit --working-dir . -- python jobs/evaluate.py --labels s3://bucket/labels --shards s3://bucket/val
"""

import sys

from brnf.cli import main

main(["evaluate", *sys.argv[1:]])
