# Numbers in words: medians, tables, bars. Knows nothing of what they are numbers of.

# One bar: both sides, how many times ours theirs is, what is asked, and whether it is so. All but `is_met` are text.
Bar = Struct.new(:name, :ours, :theirs, :ratio, :asked, :is_met, keyword_init: true) do
  def row = [name, ours, theirs, ratio, asked, is_met ? 'met' : 'NOT MET']
end
Bar::HEAD = ['', 'sidebake', 'the other side', 'other / sidebake', 'bar', ''].freeze

module Figures
  module_function

  # How much is measured: `full`, or with benches/run --smoke `least`, which runs the same code and whose figures say nothing.
  def sized(full, least) = ENV['BENCH_SMOKE'] ? least : full

  # Seconds of the monotonic clock.
  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  # Seconds that the block took.
  def seconds
    started = now
    yield
    now - started
  end

  def median(values)
    sorted = values.sort
    (sorted[(sorted.size - 1) / 2] + sorted[sorted.size / 2]) / 2.0
  end

  # The median of the numbers that the block makes of each.
  def median_of(values, &) = median(values.map(&))

  # `411 (402-530)`: the median, and within what the runs were, since that tells how far it can be trusted.
  def spread(values, decimals = 0)
    median, least, most = [median(values), *values.minmax].map { |value| format("%.#{decimals}f", value) }
    "#{median} (#{least}-#{most})"
  end

  # How many times ours theirs is: `2.28 x`.
  def times(ours, theirs) = format('%.2f x', theirs.fdiv(ours))

  # Lines of aligned columns; the first is text, the others stand at their right.
  def table(*rows)
    widths = rows.transpose.map { |column| column.map(&:size).max }
    rows.map do |first, *rest|
      cells = rest.zip(widths.drop(1)).map { |cell, width| cell.rjust(width) }
      "  #{[first.ljust(widths.first), *cells].join('   ')}".rstrip
    end
  end
end
