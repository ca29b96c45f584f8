"""Runs the steps that its argument, a JSON file, lists, as an ordinary BigQuery
client: only the host and the token are Verbatim's. Prints one JSON object for
each step."""
import decimal
import json
import os
import sys

import google.oauth2.credentials
from google.cloud import bigquery

with open(sys.argv[1]) as f:
    job = json.load(f)


def client(token):
    if job.get("adc"):  # nothing but the endpoint and the environment
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = job["tokens"][token]
        return bigquery.Client(project=job["project"], client_options={"api_endpoint": job["url"]})
    with open(job["tokens"][token]) as f:
        credentials = google.oauth2.credentials.Credentials(token=f.read())
    if job["bare"]:
        os.environ["BIGQUERY_EMULATOR_HOST"] = job["url"]
        return bigquery.Client(project=job["project"], credentials=credentials)
    return bigquery.Client(project=job["project"], credentials=credentials, client_options={"api_endpoint": job["url"]})


def plain(v):
    """A value as the other clients print it too."""
    if v is None:
        return None
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, list):
        return [plain(x) for x in v]
    if isinstance(v, (str, int, float, decimal.Decimal)):
        return str(v)
    return v.isoformat()


def rows(result):
    return [[plain(v) for v in r.values()] for r in result]


def parameter(p):
    name = p.get("name") or None
    if isinstance(p["value"], list):
        return bigquery.ArrayQueryParameter(name, p["type"], p["value"])
    return bigquery.ScalarQueryParameter(name, p["type"], p["value"])


SCHEMA = [bigquery.SchemaField("a", "INTEGER"), bigquery.SchemaField("b", "STRING")]


def query(c, s, as_job=False):
    config = bigquery.QueryJobConfig(query_parameters=[parameter(p) for p in s.get("params") or []])
    if as_job:
        return c.query(s["sql"], job_config=config).result()
    return c.query_and_wait(s["sql"], job_config=config)


def load(c, s):
    config = bigquery.LoadJobConfig(source_format="CSV", schema=SCHEMA, write_disposition="WRITE_APPEND")
    size = os.path.getsize(s["file"]) if s["form"] == "multipart" else None
    with open(s["file"], "rb") as f:
        j = c.load_table_from_file(f, s["table"], size=size, job_config=config)
    j.result()
    return {"state": j.state}


def run(c, s):
    what = s["do"]
    if what == "create":
        c.create_dataset(s["dataset"])
        c.create_table(bigquery.Table(s["table"], schema=SCHEMA))
        return {}
    if what == "query":
        return {"rows": rows(query(c, s))}
    if what == "job":
        return {"rows": rows(query(c, s, as_job=True))}
    if what == "sum":
        n = total = 0
        for r in query(c, s, as_job=True):
            n, total = n + 1, total + r[0]
        return {"rows": [[str(n), str(total)]]}
    if what == "dry":
        j = c.query(s["sql"], job_config=bigquery.QueryJobConfig(dry_run=True))
        return {"state": j.state}
    if what == "load":
        return load(c, s)
    if what == "insert":
        errors = c.insert_rows_json(c.get_table(s["table"]), s["rows"])
        return {"state": str(errors)} if errors else {}
    if what == "list":
        return {"rows": rows(c.list_rows(s["table"], selected_fields=SCHEMA, max_results=s["limit"]))}
    raise ValueError(what)


clients = {}
for step in job["steps"]:
    out = {"step": step["name"]}
    try:
        if step["as"] not in clients:
            clients[step["as"]] = client(step["as"])
        out |= run(clients[step["as"]], step)
    except Exception as e:
        out["error"] = str(e)
    print(json.dumps(out), flush=True)
