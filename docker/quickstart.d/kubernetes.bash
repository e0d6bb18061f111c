# The stages of `docker/quickstart --kubernetes`, which sources this file.
#
# Uses the article's builder: five BuildKit pods in the namespace release-builder. Builds each of three applications
# twice: by one worker, and after a change by another worker with an empty disk. So only the pods can provide the cache
# that the second build finds.

readonly BUILDERS=release-builder APPLICATIONS=(vote result worker)
CLUSTER_IS_OURS=0
declare -A NEWEST=()

build_on_kubernetes() {
  section "Starting Kubernetes, Redis, a registry and a stand-in for GitHub (the first time, Kubernetes is compiled: 6 min)"
  start_redis
  start_cluster
  start_github "${APPLICATIONS[@]}"
  start_ruby
  new_applications
  write_worker_settings one
  write_worker_settings two

  section "sidebake builder ensure (replaces \`docker buildx create --driver kubernetes --driver-opt replicas=5,…\`)"
  ensure_builder
  section "kubectl get pods --namespace $BUILDERS"
  "$KUBECTL" get pods --namespace $BUILDERS --output wide | cut -c1-110 | indent
  section "Three new applications, built at once by worker one"
  start_worker_on one
  build_applications one "$WORK/first"
  section "A change in each, built by worker two, which has its own disk"
  local application
  for application in "${APPLICATIONS[@]}"; do change "$application"; done
  start_worker_on two
  build_applications two "$WORK/second" "$WORK/first"
}

build_applications() {
  local application
  for application in "${APPLICATIONS[@]}"; do echo "$application ${NEWEST[$application]}"; done >"$WORK/commits"
  # In the foreground, because it reads stdin. Ctrl-C ends this client along with the script.
  "$RUBY" "$HERE/quickstart.d/applications.rb" "$@" <"$WORK/commits" || fail "a build did not produce the expected image" "$1"
}

# ---------------------------------------------------------------- services

start_cluster() {
  local cluster=$ROOT/tests/kubernetes/cluster
  if ! "$cluster" status >"$WORK/env" 2>/dev/null; then
    CLUSTER_IS_OURS=1
    run "$cluster" up >"$WORK/env" || fail "the cluster did not start"
  fi
  # shellcheck disable=SC1091  # KUBECONFIG, KUBECTL, BUILDKIT_IMAGE, REGISTRY, BASE_IMAGE
  . "$WORK/env"
  export KUBECONFIG REGISTRY BASE_IMAGE
}

# Kubernetes may still be deleting an earlier run's namespace.
ensure_builder() {
  "$KUBECTL" wait --for=delete namespace/$BUILDERS --timeout=60s >/dev/null 2>&1 || true
  "$KUBECTL" create namespace $BUILDERS >/dev/null || fail "cannot create the namespace $BUILDERS; is it in use?"
  NAMESPACE_IS_OURS=1
  run "$BIN/sidebake" builder ensure --config "$WORK/one.toml" >"$WORK/ensure" 2>&1 ||
    { indent <"$WORK/ensure"; fail "sidebake builder ensure failed"; }
  indent <"$WORK/ensure"
}

# write_worker_settings NAME: the worker has its own queue and disk. Both workers share `sticky_path`, by which buildx
# chooses the pod.
write_worker_settings() {
  { worker_settings "$1" "$WORK/$1"; cat <<TOML; } >"$WORK/$1.toml"
[builders.development]
driver = "kubernetes"
kubeconfig = "$KUBECONFIG"
namespace = "$BUILDERS"
replicas = 5
image = "$BUILDKIT_IMAGE"
grace_period = "1s"
sticky_path = "$WORK/sticky/{repository}"
TOML
}

start_worker_on() { spawn "$1" "$BIN/sidebake" run --config "$WORK/$1.toml"; }

stop_cluster() {
  if ((CLUSTER_IS_OURS)); then
    "$ROOT/tests/kubernetes/cluster" down || true
  elif ((${NAMESPACE_IS_OURS:-0})); then
    "$KUBECTL" delete namespace $BUILDERS --wait=false >/dev/null || true
  fi
}

# ---------------------------------------------------------------- the applications

# Makes each directory of the voting application a separate repository.
new_applications() {
  local application
  for application in "${APPLICATIONS[@]}"; do
    cp -R "$HERE/quickstart.d/voting-app/$application" "$WORK/app-$application"
    # So that no build cache knows it.
    echo "# locked at $(date +%s.%N)" >>"$WORK/app-$application/packages.txt"
    git_quietly init "$WORK/app-$application"
    commit_application "$application" "The first commit"
  done
}

change() {
  echo "changed" >"$WORK/app-$1/CHANGES"
  commit_application "$1" "A change"
}

commit_application() {
  commit "$WORK/app-$1" "$1" "$2"
  NEWEST[$1]=$SHA
}
