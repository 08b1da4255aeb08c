#!/bin/bash
# A Ray Job: `RAY_API_SERVER_ADDRESS=http://head:8265 scripts/launch/ray_job.sh build --data ... --out s3://...`. The
# nodes need gdkd-cache[ray] and see the images and the place; --teachers and --renderers go with the command.
set -euo pipefail

exec ray job submit --no-wait -- gdkd-cache "$@" --ray
