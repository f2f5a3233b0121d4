//! Chat on a route of an axum application with its own login: `axum_login ADDRESS`. `POST /login` returns a token, and
//! chat clients connect to `/chat` with it. A real application checks passwords before it returns a token.
#![allow(clippy::unwrap_used)] // an example

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::{Json, Router, routing::post};
use chat_server::{Authenticated, Error, ErrorKind, Handle, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".into());
    let logins: Arc<Mutex<HashMap<String, Handle>>> = Arc::default();
    let known = logins.clone();
    let authenticate = move |token: &str| {
        let user = known.lock().unwrap().get(token).cloned();
        user.map(Authenticated::user).ok_or(Error::new(ErrorKind::Denied, "log in first"))
    };
    let login = post(async move |Json(user): Json<Handle>| {
        let token = getrandom::u64().unwrap().to_string();
        logins.lock().unwrap().insert(token.clone(), user);
        Json(token)
    });
    let chat = Server::builder().in_memory().authenticate_with(authenticate).start().await?;
    let app = Router::new().route("/login", login).merge(chat.axum("/chat"));
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?)
}
