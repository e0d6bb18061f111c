//! A worker of rusty-sidekiq that does what sidebake does with a `Sidebake::Probe`: nothing, and then the callback if
//! there is one.
//!
//! usage: rusty REDIS_URL CONCURRENCY QUEUE

use serde_json::{Value, json};
use sidekiq::{Processor, ProcessorConfig, RedisConnectionManager, RedisPool, Result, Worker};

#[derive(Clone)]
struct Probe {
    redis: RedisPool,
}

#[async_trait::async_trait]
impl Worker<Value> for Probe {
    fn class_name() -> String {
        "Sidebake::Probe".into()
    }

    async fn perform(&self, probe: Value) -> Result<()> {
        let callback = &probe["callback"];
        if let (Some(class), Some(queue)) = (callback["class"].as_str(), callback["queue"].as_str()) {
            let report = json!({"jid": probe["jid"], "status": "succeeded"});
            sidekiq::perform_async(&self.redis, class.into(), queue.into(), report).await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() {
    let [url, concurrency, queue] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("three arguments");
    let concurrency: usize = concurrency.parse().expect("a number");
    let manager = RedisConnectionManager::new(url).expect("a URL");
    let redis = bb8::Pool::builder().max_size(concurrency as u32 + 5).build(manager).await.expect("Redis answers");
    let config = ProcessorConfig::default().num_workers(concurrency);
    let mut processor = Processor::new(redis.clone(), vec![queue]).with_config(config);
    processor.register(Probe { redis });
    processor.run().await;
}
