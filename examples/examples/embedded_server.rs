//! A server with a durable store in the own process: `embedded_server DATA ADDRESS`.

#[tokio::main]
async fn main() -> Result<(), chat_server::ServerError> {
    let mut arguments = std::env::args().skip(1);
    chat_server::Server::builder()
        .data_dir(arguments.next().unwrap_or_else(|| "chat-data".into()))
        .open_registration()
        .listen(arguments.next().unwrap_or_else(|| "127.0.0.1:7777".into()))
        .serve() // until Ctrl-C or SIGTERM, then drains
        .await
}
