# Ways of the git command line to get a commit's files, with git's defaults, each as fast as possible without tricks.
#
# Keeps its own bare mirror and the tree of one call in the directory `home`.

require 'base64'
require 'open3'

class Git
  # Fetches one commit into an empty mirror.
  COLD = <<~SH
    git init --quiet tree
    cd tree
    git fetch --quiet --depth 1 "$URL" "$SHA"
    git checkout --quiet FETCH_HEAD
  SH

  MIRROR = 'git init --quiet --bare mirror'

  # The ref tells the server in the next fetch which commits the mirror has.
  FETCH = 'git -C mirror fetch --quiet --depth 1 "$URL" "+$SHA:refs/jobs/$SHA"'

  # As fast as `git worktree add`, `git checkout`, and read-tree with checkout-index, and leaves nothing in the mirror.
  # The tree has its own index, because other calls can use the same mirror.
  CHECKOUT = <<~SH
    mkdir tree
    GIT_INDEX_FILE=$PWD/tree.index git --git-dir=mirror --work-tree=tree read-tree --reset -u "$SHA"
    rm tree.index
  SH

  # What the Ruby builder did.
  CLONE = <<~SH
    git clone --quiet --no-checkout "$URL" tree
    git -C tree checkout --quiet "$SHA"
  SH

  def initialize(token)
    authorization = "Authorization: Basic #{Base64.strict_encode64("x-access-token:#{token}")}"
    @environment = {
      **Service::CLEAN, **Repository::UNCONFIGURED,
      'GIT_CONFIG_COUNT' => '1', 'GIT_CONFIG_KEY_0' => 'http.extraHeader', 'GIT_CONFIG_VALUE_0' => authorization
    }
  end

  def make_mirror(home) = run(home, MIRROR)

  def cold(home, url, sha) = run(home, COLD, url, sha)

  def warm(home, url, sha) = run(home, "#{FETCH}\n#{CHECKOUT}", url, sha)

  def again(home, _url, sha) = run(home, CHECKOUT, '', sha)

  def clone(home, url, sha) = run(home, CLONE, url, sha)

  private

  def run(home, script, url = '', sha = '')
    environment = @environment.merge('URL' => url, 'SHA' => sha)
    output, status = Open3.capture2e(environment, 'sh', '-ec', script, chdir: home, unsetenv_others: true)
    status.success? or raise Unmeasurable, "git failed: #{output.lines.last(3).join}"
  end
end
