# Runs the requested parts one after the other, and ends with one table of all bars.
#
# usage: measure.rb DIRECTORY RUNS PART...      (the environment is benches/run's)
# DIRECTORY contains the binaries and receives everything else. Exits 1 with a sentence when a measurement fails.

require 'etc'
require_relative 'figures'
require_relative 'world'
require_relative 'builder'
require_relative 'overhead'
require_relative 'boot'
require_relative 'memory'
require_relative 'oldway'
require_relative 'kubernetes'
require_relative 'observed'
require_relative 'speed'
require_relative 'tenants'
require_relative 'source'
require_relative 'policy'
require_relative 'logs'
require_relative 'cache'

PARTS = {
  'overhead' => Overhead, 'boot' => Boot, 'memory' => Memory, 'oldway' => OldWay, 'kubernetes' => Kubernetes, 'speed' => Speed, 'observed' => Observed,
  'tenants' => Tenants, 'source' => Source, 'policy' => Policy, 'logs' => Logs, 'cache' => Cache
}.freeze

# The percentage of processor time that other processes use, measured for one idle second.
def busy
  before, after = Array.new(2) do |n|
    sleep n
    File.read('/proc/stat').lines.first.split.drop(1).map(&:to_i)
  end
  spent = after.zip(before).map { |late, early| late - early }
  # user, nice, system, idle, waiting for the disk, ...
  100 - (100 * spent.values_at(3, 4).sum / spent.sum)
end

def measure(directory, runs, parts)
  world = World.new(directory, parts == ['kubernetes'] ? Cluster.new : Engine.new)
  world.start
  puts "#{runs} runs of each side; #{Etc.nprocessors} processors, #{busy} % busy with something else before the first"
  bars = parts.flat_map { |part| PARTS.fetch(part).new(world, runs).measure }
  return puts '', "#{parts.size} parts ran, the smallest form of each; their figures mean nothing." if ENV['BENCH_SMOKE']

  puts '', "The bars (#{busy} % busy with something else after the last run)", Figures.table(Bar::HEAD, *bars.map(&:row))
ensure
  world.stop
end

$stdout.sync = true
# The thread that waits for another one gets its exception, so Ruby need not print it as well.
Thread.report_on_exception = false
# As exceptions, so that the `ensure` blocks stop all services.
%w[INT TERM HUP].each { |name| trap(name) { exit 130 } }
directory, runs, *parts = ARGV
begin
  measure(directory, Integer(runs), parts)
rescue Unmeasurable => e
  puts "Stopped: #{e.message}"
  exit 1
end
