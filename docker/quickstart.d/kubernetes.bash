# The story of `docker/quickstart --kubernetes`; sourced by it.
#
# The article's builder, five BuildKit pods in the namespace release-builder, and three applications that are built
# twice: first by one worker, then, after a change, by another one with an empty disk. That the second build finds what
# the first one left is the pods' doing alone.

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

  section "sidebake builder ensure: what \`docker buildx create --driver kubernetes --driver-opt replicas=5,…\` did"
  ensure_builder
  section "kubectl get pods --namespace $BUILDERS"
  "$KUBECTL" get pods --namespace $BUILDERS --output wide | cut -c1-110 | indent
  section "Three new applications, built at once by worker one"
  start_worker_on one
  build_applications one "$WORK/first"
  section "A change in each, built by worker two, which has a disk of its own"
  local application
  for application in "${APPLICATIONS[@]}"; do change "$application"; done
  start_worker_on two
  build_applications two "$WORK/second" "$WORK/first"
}

build_applications() {
  local application
  for application in "${APPLICATIONS[@]}"; do echo "$application ${NEWEST[$application]}"; done >"$WORK/commits"
  # In the foreground, for its input: it is the client, and ends with its terminal.
  "$RUBY" "$HERE/quickstart.d/applications.rb" "$@" <"$WORK/commits" || fail "the builds did not come out right" "$1"
}

# ---------------------------------------------------------------- services

start_cluster() {
  local cluster=$ROOT/tests/kubernetes/cluster
  if ! "$cluster" status >"$WORK/env" 2>/dev/null; then
    CLUSTER_IS_OURS=1
    run "$cluster" up >"$WORK/env" || fail "the cluster did not start"
  fi
  # shellcheck disable=SC1091  # KUBECONFIG, KUBECTL, BUILDKIT_IMAGE, REGISTRY, BASE_IMAGE, BUILDX
  . "$WORK/env"
  export KUBECONFIG REGISTRY BASE_IMAGE
}

# An earlier run's namespace may still be on its way out.
ensure_builder() {
  "$KUBECTL" wait --for=delete namespace/$BUILDERS --timeout=60s >/dev/null 2>&1 || true
  "$KUBECTL" create namespace $BUILDERS >/dev/null || fail "the namespace $BUILDERS cannot be made; is it in use?"
  NAMESPACE_IS_OURS=1
  run "$BIN/sidebake" builder ensure --config "$WORK/one.toml" >"$WORK/ensure" 2>&1 ||
    { indent <"$WORK/ensure"; fail "there is no builder"; }
  indent <"$WORK/ensure"
}

# write_worker_settings NAME: a queue and a disk of its own. The path by which buildx chooses the pod is the same.
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

# Each directory of the voting application as a repository of its own.
new_applications() {
  local application
  for application in "${APPLICATIONS[@]}"; do
    cp -R "$HERE/quickstart.d/voting-app/$application" "$WORK/app-$application"
    # New to every build cache.
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
