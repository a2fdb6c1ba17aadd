#!/bin/sh
# At the top of the bundle: run.cjs with the Node that came with it.
here=$(cd "${0%/*}" && pwd) && exec "$here/node" "$here/scripts/gpu-bundle/run.cjs" "$@"
