use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::http_service;
use spin_sdk::key_value::{Error, Store};

/// Counts the visits of each page.
#[http_service]
async fn count(request: Request) -> impl IntoResponse {
    let page = request.uri().path();
    match next(page).await {
        Ok(visits) => format!("{page} has been visited {visits} times\n"),
        Err(error) => format!("cannot count: {error}\n"),
    }
}

/// One visit more than the store remembers. Two visits at the same moment may
/// count as one: reading and writing are two steps.
async fn next(page: &str) -> Result<u64, Error> {
    let store = Store::open_default().await?;
    let before = match store.get(page).await? {
        Some(digits) => String::from_utf8_lossy(&digits).parse().unwrap_or(0),
        None => 0,
    };
    let visits = before + 1;
    store.set(page, visits.to_string()).await?;
    Ok(visits)
}
