# Checks that Sidekiq can show everything in Redis: every entry by its API, every page of its Web UI. Works in Sidekiq
# 6.4, 7.3 and 8.1.
#
# usage: shown.rb        prints JSON: the version, how many entries each set and queue has, and every failure
#        shown.rb retry  retries every malformed entry of the dead set, as the button of the Web UI does
require_relative "web"

FAILURES = []
PAGE = 25

# SystemStackError is not a StandardError.
def attempt(what)
  yield
rescue Exception => error # rubocop:disable Lint/RescueException
  FAILURES << {what: what, error: "#{error.class}: #{error.message[0, 300]}", at: error.backtrace&.first}
  nil
end

# A page must contain no markup of an entry: neither the script of the tests, nor an attribute that one of their texts
# begins.
def page(path)
  attempt("GET #{path}") do
    status, text = get(path)
    raise "status #{status}" unless status == 200
    raise "not UTF-8" unless text.force_encoding("UTF-8").valid_encoding?
    markup = text[/.{0,80}<script>alert.{0,80}/m] || text[/<[^<>]*["']onx=.{0,80}/m]
    raise "markup of an entry: #{markup.inspect}" if markup
  end
end

# Fields of an entry that scripts and other pages read.
def read(job, what)
  attempt("#{what} #{job.value.to_s[0, 300].inspect}") do
    raise "class #{job.klass.inspect}" unless job.klass.is_a?(String)
    raise "queue #{job.queue.inspect}" unless job.queue.is_a?(String) && !job.queue.empty?
    raise "jid #{job.jid.inspect}" unless job.jid.is_a?(String) && !job.jid.empty?
    raise "args #{job.args.class}" unless job.args.is_a?(Array)
    [job.display_class, job.display_args, job.tags.map(&:to_s), job.created_at, job.enqueued_at, job.error_backtrace, job.item.inspect]
    raise "latency #{job.latency.inspect}" unless job.latency.is_a?(Float)
  end
end

def sorted_set(set, path)
  count = 0
  set.each do |entry|
    count += 1
    read(entry, set.name)
    attempt("#{set.name} #{entry.jid}") { [entry.at.iso8601, entry.error?, entry.score] }
    # Sidekiq's router accepts no other characters in a jid, even for Ruby's own jobs.
    page("#{path}/#{entry.score}-#{entry.jid}") if /\A[\w.:~-]+\z/.match?(entry.jid.to_s)
  end
  pages(path, count)
  count
end

def queue(queue)
  count = 0
  queue.each do |job|
    count += 1
    read(job, "queue #{queue.name}")
  end
  attempt("latency of #{queue.name}") { queue.latency }
  # The Web UI has no page for queues with other names, even for Ruby's own queues.
  pages("/queues/#{queue.name}", count) if /\A[a-z_:.\-0-9]+\z/i.match?(queue.name)
  count
end

def pages(path, count)
  (1..(count / PAGE + 1)).each { |number| page("#{path}?page=#{number}&count=#{PAGE}") }
end

if ARGV[0] == "retry"
  Sidekiq::DeadSet.new.select { |entry| entry.klass == "Sidebake::Malformed" }.each(&:retry)
  exit
end

counts = {}
attempt("dead") { counts["dead"] = sorted_set(Sidekiq::DeadSet.new, "/morgue") }
attempt("retry") { counts["retry"] = sorted_set(Sidekiq::RetrySet.new, "/retries") }
attempt("schedule") { counts["schedule"] = sorted_set(Sidekiq::ScheduledSet.new, "/scheduled") }
attempt("queues") { Sidekiq::Queue.all.each { |each| counts["queue:#{each.name}"] = queue(each) } }
attempt("work") { counts["work"] = works.count }
attempt("stats") { Sidekiq::Stats.new.fetch_stats! }
%w[/ /busy /queues /stats /stats/queues].each { |path| page(path) }
page("/metrics") if Sidekiq::VERSION.to_i >= 7
puts JSON.generate(version: Sidekiq::VERSION, counts: counts, failures: FAILURES.first(60), n_failures: FAILURES.size)
