# Enqueues the jobs from standard input, a JSON array of [class, arguments], as an application does. Prints one jid per
# line.

require_relative 'jobs'

JSON.parse($stdin.read).each do |name, arguments|
  job = Object.const_get(name)
  puts job < ActiveJob::Base ? job.perform_later(*arguments).provider_job_id : job.perform_async(*arguments)
end
