# The two classes that an application has: the job that asks for a build, and the job that is told how it ended.
# Loaded by the client (build.rb) and by the Sidekiq worker that takes the callbacks.

require 'json'
require 'sidekiq'

# Debian 12's Redis client announces a change of its own on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

class BuildJob
  include Sidekiq::Job
  # No `perform`: sidebake takes these jobs from the queue.
end

class BuildFinishedJob
  include Sidekiq::Job
  # A queue that sidebake does not take from.
  sidekiq_options queue: 'callbacks'

  # An application would update its rows; here the report becomes a file, which build.rb waits for.
  def perform(report)
    path = File.join(ENV.fetch('REPORTS'), "#{report.fetch('jid')}.json")
    File.write("#{path}.new", JSON.generate(report))
    File.rename("#{path}.new", path)
  end
end
