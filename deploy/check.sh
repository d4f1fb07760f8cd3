#!/usr/bin/env bash
# Checks the deployment files without a cluster: the container file by hadolint, the rendered manifests by Kubernetes' own schemas,
# strictly (unknown fields are errors). Tools: hadolint, kubernetes-validate (.ci/requirements.txt), kubectl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

kubernetes=1.37
for tool in hadolint kubernetes-validate kubectl; do
    command -v "$tool" >/dev/null || { echo "deploy/check.sh: $tool is not on PATH; .ci/run installs it into .cache/ci" >&2; exit 1; }
done

hadolint Containerfile
echo "Containerfile: hadolint ok"

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
rendered=$work/rendered.yaml
# A copy, with stand-ins for the files of `ballast certs`: nothing of them is looked at here.
cp -r kubernetes "$work"
rm -rf "$work/kubernetes/certs"
mkdir "$work/kubernetes/certs"
for name in $(grep -o 'certs/[a-z.]*' kubernetes/kustomization.yaml | sort -u); do
    echo stand-in > "$work/kubernetes/$name"
done
kubectl kustomize "$work/kubernetes" > "$rendered"
kubernetes-validate --strict -k "$kubernetes" "$rendered"

# The number of workers stands in three places; they must agree.
workers=$(sed -n 's/^workers = //p' kubernetes/run.toml)
for place in "worker.yaml:parallelism" "worker.yaml:completions" "disruption-budget.yaml:minAvailable"; do
    grep -q "^ *${place#*:}: $workers\$" "kubernetes/${place%%:*}" ||
        { echo "deploy/check.sh: ${place#*:} in ${place%%:*} is not cluster.workers = $workers of run.toml" >&2; exit 1; }
done
echo "kubernetes: ${workers} workers in run file, worker Job and disruption budget"
