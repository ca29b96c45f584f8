"""Reads a table by Python's clients as DataFrames do: BigQuery by REST, its rows
by the Storage Read API. The job is JSON on standard input."""

import datetime
import json
import sys

from google.cloud import bigquery, bigquery_storage
from google.oauth2.credentials import Credentials

job = json.load(sys.stdin)
project = job["project"]


def clients(role):
    until = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) + datetime.timedelta(hours=1)
    creds = Credentials(token=job[role], expiry=until)
    return (
        bigquery.Client(project=project, credentials=creds, client_options={"api_endpoint": "https://" + job["endpoint"]}),
        bigquery_storage.BigQueryReadClient(credentials=creds, client_options={"api_endpoint": job["endpoint"]}),
    )


def said(call):
    try:
        call()
    except Exception as e:
        return str(e)
    return "nothing was refused"


writer, _ = clients("writer")
writer.create_dataset("frames")
table = writer.create_table(bigquery.Table(f"{project}.frames.numbers", schema=[bigquery.SchemaField("n", "INT64"), bigquery.SchemaField("word", "STRING")]))
writer.load_table_from_json([{"n": i, "word": f"word {i}"} for i in range(5000)], table).result()

reader, storage = clients("reader")
table = reader.get_table(table)
rest = reader.list_rows(table).to_arrow(create_bqstorage_client=False)
frame = reader.list_rows(table).to_arrow(bqstorage_client=storage)
assert frame.sort_by("n").equals(rest.sort_by("n")), (frame.schema, rest.schema)

# What lies below to_arrow: a selection, a filter, and the names of streams.
types = bigquery_storage.types
session = storage.create_read_session(
    parent=f"projects/{project}",
    read_session=types.ReadSession(
        table=f"projects/{project}/datasets/frames/tables/numbers",
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(selected_fields=["word"], row_restriction="n < 10"),
    ),
    max_stream_count=1,
)
some = storage.read_rows(session.streams[0].name).rows(session).to_arrow()
assert some.column_names == ["word"] and some.num_rows == 10, some

_, strange = clients("stranger")
_, other = clients("writer")
print(json.dumps({
    "rows": frame.num_rows,
    "total": sum(frame.column("n").to_pylist()),
    "stranger": said(lambda: strange.create_read_session(
        parent=f"projects/{project}",
        read_session=types.ReadSession(table=f"projects/{project}/datasets/frames/tables/numbers", data_format=types.DataFormat.ARROW),
        max_stream_count=1,
    )),
    "foreign": said(lambda: list(other.read_rows(session.streams[0].name))),
}))
