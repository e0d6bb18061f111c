# Runs the parts that were asked for, one after the other, and ends with one table of all bars.
#
# usage: measure.rb DIRECTORY RUNS PART...      (the environment is benches/run's)
# DIRECTORY holds the binaries and receives everything else. Exit 1 with a sentence when something cannot be measured.

require 'etc'
require_relative 'figures'
require_relative 'world'
require_relative 'overhead'
require_relative 'boot'
require_relative 'memory'
require_relative 'oldway'

PARTS = { 'overhead' => Overhead, 'boot' => Boot, 'memory' => Memory, 'oldway' => OldWay }.freeze

# More runnable processes than this, before there are any of ours, and times are longer and noisier than they should be.
BUSY = 0.5

def load_average = Float(File.read('/proc/loadavg').split.first)

def measure(directory, runs, parts)
  world = World.new(directory)
  puts "#{runs} runs of each side, #{Etc.nprocessors} processors, load #{load_average} before the first"
  puts 'Something else is at work on this machine: distrust the times.' if load_average > BUSY
  bars = parts.flat_map { |part| PARTS.fetch(part).new(world, runs).measure }
  puts '', "The bars (load #{load_average} after the last run)", Figures.table(Bar::HEAD, *bars.map(&:row))
ensure
  world&.stop
end

$stdout.sync = true
# As exceptions, so that what was started is ended.
%w[INT TERM HUP].each { |name| trap(name) { exit 130 } }
directory, runs, *parts = ARGV
begin
  measure(directory, Integer(runs), parts)
rescue Unmeasurable => e
  puts "Stopped: #{e.message}"
  exit 1
end
