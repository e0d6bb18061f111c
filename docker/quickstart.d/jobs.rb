# The two job classes of an application: one requests a build, the other receives its report.
# The client (build.rb) and the Sidekiq worker that runs the callbacks load them.

require 'json'
require 'sidekiq'

# Debian 12's Redis client otherwise prints a deprecation warning on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

class BuildJob
  include Sidekiq::Job
  # No `perform`: sidebake takes these jobs from the queue.
end

class BuildFinishedJob
  include Sidekiq::Job
  # A queue that sidebake does not take from.
  sidekiq_options queue: 'callbacks'

  # An application would update its database. Here the report becomes a file, which build.rb waits for.
  def perform(report)
    path = File.join(ENV.fetch('REPORTS'), "#{report.fetch('jid')}.json")
    File.write("#{path}.new", JSON.generate(report))
    File.rename("#{path}.new", path)
  end
end
