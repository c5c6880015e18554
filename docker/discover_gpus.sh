#!/usr/bin/env bash
# Tells Spark which GPUs this executor has: spark.executor.resource.gpu.discoveryScript=/opt/discover_gpus.sh
set -euo pipefail
indexes=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [$indexes]}"
