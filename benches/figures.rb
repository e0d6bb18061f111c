# Formats numbers: medians, tables, bars. Does not know what the numbers measure.

# One bar: both sides, their ratio, the requirement, and whether it is met. All fields except `is_met` are text.
Bar = Struct.new(:name, :ours, :theirs, :ratio, :asked, :is_met, keyword_init: true) do
  def row = [name, ours, theirs, ratio, asked, is_met ? 'met' : 'NOT MET']
end
Bar::HEAD = ['', 'sidebake', 'the other side', 'other / sidebake', 'bar', ''].freeze

module Figures
  module_function

  # The size of a measurement: `full`, or `least` with benches/run --smoke, which runs the same code for meaningless
  # figures.
  def sized(full, least) = ENV['BENCH_SMOKE'] ? least : full

  # Seconds of the monotonic clock.
  def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

  # The duration of the block in seconds.
  def seconds
    started = now
    yield
    now - started
  end

  def median(values)
    sorted = values.sort
    (sorted[(sorted.size - 1) / 2] + sorted[sorted.size / 2]) / 2.0
  end

  # The value that this part of all values does not exceed, such as 0.99 of them.
  def quantile(values, part) = values.sort[(values.size * part).ceil - 1]

  # The median of the block's numbers.
  def median_of(values, &) = median(values.map(&))

  # `411 (402-530)`: the median and the range of the runs. The range shows how reliable the median is.
  def spread(values, decimals = 0)
    median, least, most = [median(values), *values.minmax].map { |value| format("%.#{decimals}f", value) }
    "#{median} (#{least}-#{most})"
  end

  # The ratio of ours to theirs: `2.28 x`.
  def times(ours, theirs) = format('%.2f x', theirs.fdiv(ours))

  # Lines of aligned columns. The first column is text; the others align right.
  def table(*rows)
    widths = rows.transpose.map { |column| column.map(&:size).max }
    rows.map do |first, *rest|
      cells = rest.zip(widths.drop(1)).map { |cell, width| cell.rjust(width) }
      "  #{[first.ljust(widths.first), *cells].join('   ')}".rstrip
    end
  end
end
