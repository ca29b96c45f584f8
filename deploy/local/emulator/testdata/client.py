"""What a Python agent does; prints one line for each step."""
import io
import sys

from google.api_core.exceptions import BadRequest, GoogleAPICallError
from google.cloud import bigquery
from google.oauth2.credentials import Credentials

url, token = sys.argv[1], sys.argv[2]
c = bigquery.Client(project="test-project", credentials=Credentials(token=token), client_options={"api_endpoint": url})
c.create_dataset("py", exists_ok=True)
table = bigquery.Table("test-project.py.t", schema=[bigquery.SchemaField("a", "INTEGER"), bigquery.SchemaField("b", "STRING")])
c.create_table(table)

rows = "".join(f"{i},row {i}\n" for i in range(1000)).encode()
config = bigquery.LoadJobConfig(source_format="CSV", schema=table.schema)
j = c.load_table_from_file(io.BytesIO(rows), table, job_config=config, job_id="py-resumable")
j.result()
print("resumable", j.job_id, c.get_job("py-resumable").job_id)
j = c.load_table_from_file(io.BytesIO(rows), table, job_config=config, size=len(rows), num_retries=0)
j.result()
print("multipart", j.state)
print("insertAll", c.insert_rows_json(table, [{"a": 1, "b": "x"}]))
print("count", [r[0] for r in c.query_and_wait("SELECT COUNT(*) FROM py.t")])
print("list", len(list(c.list_rows("test-project.py.t", max_results=5))))
q = c.query("SELECT a FROM py.t WHERE a = @a", job_config=bigquery.QueryJobConfig(query_parameters=[bigquery.ScalarQueryParameter("a", "INT64", 7)]))
print("parameters", [r[0] for r in q.result()])
anonymous = c.get_job(q.job_id).destination
print("anonymous", len(list(c.list_rows(anonymous, selected_fields=[bigquery.SchemaField("a", "INTEGER")]))))
print("pages", sum(1 for _ in c.query("SELECT x FROM UNNEST(GENERATE_ARRAY(1, 25000)) x").result()))
for name, run in (("jobs.query", lambda: c.query_and_wait("SELECT nothing FROM py.t")), ("jobs.insert", lambda: c.query("SELECT nothing FROM py.t").result())):
    try:
        run()
        print(name, "no error")
    except BadRequest as e:
        print(name, "BadRequest", "nothing" in e.message)
print("synthetic", sum(len(r[0]) for r in c.query_and_wait("SELECT /*verbatim:bytes=1000000*/ 1")))
print("dry run", c.query("SELECT a FROM py.t", job_config=bigquery.QueryJobConfig(dry_run=True)).state)
header = bigquery.LoadJobConfig(source_format="CSV", schema=table.schema, skip_leading_rows=2, write_disposition="WRITE_TRUNCATE")
c.load_table_from_file(io.BytesIO(b"a,b\nunits,none\n1,x\n"), "test-project.py.h", job_config=header).result()
print("header", [tuple(r) for r in c.list_rows("test-project.py.h")])
