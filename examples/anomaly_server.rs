//! An HTTP service that scores anomalies: one prepared model, shared by all threads.
//!
//! ```sh
//! cargo run --release --example anomaly_server -- 127.0.0.1:8080
//! curl -d '[[1.0, 2.1], [9.0, -3.0]]' http://127.0.0.1:8080/score
//! ```
//!
//! Without an address it serves on a free port, asks itself a few questions and stops.

use std::sync::Arc;
use std::time::Duration;

use oxhttp::Server;
use oxhttp::model::{Body, Method, Request, Response, StatusCode};
use resflow::backend::Key;
use resflow::config::FlowConfig;
use resflow::data::{Table, ToyDensity, number_of};
use resflow::flow::PreparedFlow;
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::{Flow, NdArray};

type Cpu = NdArray<f32>;

/// Rows of a request at most: memory stays bounded whatever a client sends.
const MOST_BYTES: u64 = 1 << 20;

/// A model and what it takes for usual.
struct Detector {
    flow: PreparedFlow<Cpu>,
    /// log p below which one row in a hundred of the training data lies, nats.
    threshold: f64,
    key: Key,
}

impl Detector {
    /// Learns what is usual. A service would read a model file: `Flow::load(backend, path)?.prepare()`.
    fn learn() -> Result<Self, resflow::Error> {
        // a request is scored on the thread that it came in on
        let backend = Cpu::with_threads(std::num::NonZeroUsize::MIN)?;
        let flow = Flow::new(backend, FlowConfig { blocks: 4, ..FlowConfig::new(2) }, Key::new(0))?;
        let train = TrainConfig::default();
        let mut trainer = Trainer::new(flow, ToyDensity::Moons, &train, Budget::Steps(200), Key::new(1))?;
        trainer.run(|_, _| ())?;
        // normalising the weights costs as much as scoring a row: once, not at every request
        let flow = trainer.model().prepare();
        let key = Key::new(2);
        let mut usual = flow.log_prob(trainer.validation_samples(), key)?.values;
        usual.sort_by(f64::total_cmp);
        Ok(Self { threshold: usual[usual.len() / 100], flow, key })
    }

    /// log p of each row. A row's number is a function of the row, so its estimate does not depend on what it came with.
    fn score(&self, rows: &[Vec<f64>]) -> Result<serde_json::Value, resflow::Error> {
        let mut answers = Vec::with_capacity(rows.len());
        for row in rows {
            let score = self.flow.log_prob_from(&Table::from_rows(&[row])?, number_of(row), self.key)?;
            let log_p = score.values[0];
            // JSON has no −∞
            let log_p_json = log_p.is_finite().then_some(log_p);
            answers.push(serde_json::json!({ "log_prob": log_p_json, "anomaly": log_p < self.threshold }));
        }
        Ok(answers.into())
    }
}

fn answer(detector: &Detector, request: &mut Request<Body>) -> Response<Body> {
    let reply = |status: StatusCode, body: serde_json::Value| {
        let response = Response::builder().status(status).header("content-type", "application/json");
        response.body(Body::from(body.to_string())).expect("a status and a header that exist")
    };
    let wrong = |status, problem: String| reply(status, serde_json::json!({ "error": problem }));
    if (request.method(), request.uri().path()) != (&Method::POST, "/score") {
        return wrong(StatusCode::NOT_FOUND, "POST rows of numbers, [[1.0, 2.0], …], to /score".into());
    }
    let mut text = String::new();
    let mut body = std::io::Read::take(request.body_mut(), MOST_BYTES);
    if let Err(e) = std::io::Read::read_to_string(&mut body, &mut text) {
        return wrong(StatusCode::BAD_REQUEST, e.to_string());
    }
    let rows: Vec<Vec<f64>> = match serde_json::from_str(&text) {
        Ok(rows) => rows,
        Err(e) => return wrong(StatusCode::BAD_REQUEST, format!("rows of numbers are expected: {e}")),
    };
    match detector.score(&rows) {
        Ok(scores) => reply(StatusCode::OK, scores),
        // what is wrong with the rows is said in words that a client can use
        Err(e) => wrong(StatusCode::BAD_REQUEST, e.to_string()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let detector = Arc::new(Detector::learn()?);
    println!("rows with log p below {:.2} are reported", detector.threshold);
    let serve = {
        let detector = Arc::clone(&detector);
        move |request: &mut Request<Body>| answer(&detector, request)
    };
    let server = |address: std::net::SocketAddr| {
        Server::new(serve)
            .bind(address)
            .with_global_timeout(Duration::from_secs(10))
            .with_max_concurrent_connections(64)
    };
    if let Some(address) = std::env::args().nth(1) {
        println!("http://{address}/score");
        return Ok(server(address.parse()?).spawn()?.join()?);
    }

    // a port that is free: asked for, and given back
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let _running = server(address).spawn()?;
    let client = oxhttp::Client::new().with_global_timeout(Duration::from_secs(10));
    let ask = |rows: &str| -> Result<String, Box<dyn std::error::Error>> {
        let request = Request::builder().method(Method::POST).uri(format!("http://{address}/score"));
        Ok(client.request(request.body(rows.to_owned())?)?.into_body().to_string()?)
    };
    let together = ask("[[0.5, 0.2], [9.0, -3.0]]")?;
    println!("two rows: {together}");
    let alone = ask("[[9.0, -3.0]]")?;
    assert!(together.ends_with(&alone[1..]), "a row has the same score alone: {alone}");
    println!("a row of another length: {}", ask("[[1.0, 2.0, 3.0]]")?);
    println!("no rows at all: {}", ask("hello")?);
    Ok(())
}
