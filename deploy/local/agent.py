"""The demonstration's agent: an ordinary BigQuery client. Only the host and the
credentials are Verbatim's: the token is the one that the agent's own platform
gives it, and it never reaches Google."""
import datetime
import sys

import google.api_core.exceptions
import google.oauth2.credentials
from google.cloud import bigquery

url, project, token_file, mode = sys.argv[1:5]


def refresh(request, scopes):
    with open(token_file) as f:
        return f.read(), datetime.datetime.utcnow() + datetime.timedelta(minutes=30)


client = bigquery.Client(
    project=project,
    client_options={"api_endpoint": url},
    credentials=google.oauth2.credentials.Credentials(token=None, refresh_handler=refresh),
)

if mode == "one":
    for row in client.query_and_wait("SELECT 1 AS one"):
        print("SELECT 1 AS one ->", dict(row))
else:
    sql = """SELECT c.country, COUNT(*) AS orders, ROUND(SUM(o.amount), 2) AS amount
FROM shop.orders AS o JOIN shop.customers AS c ON c.id = o.customer
GROUP BY c.country ORDER BY amount DESC"""
    print("SELECT country, orders, amount ...")
    for row in client.query_and_wait(sql):
        print("   ", row.country, row.orders, row.amount)

    print("DELETE FROM shop.customers WHERE true")
    try:
        client.query_and_wait("DELETE FROM shop.customers WHERE true")
    except google.api_core.exceptions.Forbidden as e:
        print("    denied:", e.errors[0]["message"])
    else:
        sys.exit("the delete was not denied")
