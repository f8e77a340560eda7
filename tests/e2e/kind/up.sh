#!/usr/bin/env bash
# up.sh [--gpu]: a kind cluster with both images in it, for tests/e2e. Needs docker, kind, kubectl, helm.
#
#   --gpu    give the worker node this machine's NVIDIA GPUs: NVIDIA's device plugin, and the worker image with CUDA.
#            Without it, the worker node says that it has 4 GPUs that are not there: enough for scheduling.
#
#   KIND_NODE_IMAGE   another image for the nodes; --gpu needs one with NVIDIA's container toolkit (README.md here)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

gpu=
case "${1:-}" in
  '') ;;
  --gpu) gpu=1 ;;
  *) echo "up.sh: error: no option $1; allowed: --gpu" >&2 && exit 2 ;;
esac
for program in docker kind kubectl helm; do
  command -v "$program" >/dev/null || { echo "up.sh: error: $program is not installed" >&2 && exit 2; }
done

docker build -f Dockerfile.operator -t localhost/minisgl-operator:dev .
docker build -f Dockerfile.worker --target cpu -t localhost/minisgl-worker-cpu:dev .
[ -z "$gpu" ] || docker build -f Dockerfile.worker -t localhost/minisgl-worker:dev .

kind get clusters | grep -qx minisgl || kind create cluster --config tests/e2e/kind/cluster.yaml ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"}
kind load docker-image --name minisgl localhost/minisgl-operator:dev localhost/minisgl-worker-cpu:dev
node=minisgl-worker
if [ -n "$gpu" ]; then
  kind load docker-image --name minisgl localhost/minisgl-worker:dev
  # The node's own containers need the runtime too.
  docker exec "$node" nvidia-ctk runtime configure --runtime=containerd --set-as-default
  docker exec "$node" systemctl restart containerd
  helm --kube-context kind-minisgl upgrade --install nvidia-device-plugin nvidia-device-plugin \
    --repo https://nvidia.github.io/k8s-device-plugin --namespace nvidia --create-namespace --wait
else
  kubectl --context kind-minisgl patch node "$node" --subresource=status --type=json \
    -p '[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "4"}]'
fi
kind get kubeconfig --name minisgl >tests/e2e/kind/kubeconfig
chmod 600 tests/e2e/kind/kubeconfig
echo "Now: KUBECONFIG=\$PWD/tests/e2e/kind/kubeconfig make e2e"
