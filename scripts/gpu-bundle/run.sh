#!/bin/sh
# At the top of the bundle: run.cjs with the Node that came with it, whatever the host's environment wants Nodes to do.
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
unset NODE_OPTIONS NODE_PATH NODE_EXTRA_CA_CERTS
here=$(cd "$here" && pwd) && exec "$here/node" "$here/scripts/gpu-bundle/run.cjs" "$@"
