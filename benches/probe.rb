# The other side of `boot` and `memory`: Ruby's Sidekiq with one job class, without Rails. Does what sidebake does with
# a Sidebake::Probe: nothing, and then the callback.

require 'sidekiq'

# Debian 12's Redis client otherwise prints a deprecation warning on every push.
Redis.sadd_returns_boolean = false if defined?(Redis) && Redis.respond_to?(:sadd_returns_boolean=)

module Sidebake
  class Probe
    include Sidekiq::Job

    def perform(probe)
      class_name, queue = probe.fetch('callback') { return }.values_at('class', 'queue')
      Sidekiq::Client.push('class' => class_name, 'queue' => queue, 'args' => [{ 'jid' => jid, 'status' => 'succeeded' }])
    end
  end
end
