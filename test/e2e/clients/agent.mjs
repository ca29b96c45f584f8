// Runs the steps that its second argument, a JSON file, lists, as an ordinary
// BigQuery client: only the host and the token are Verbatim's. Prints one JSON
// object for each step. The first argument is the folder with node_modules.
import {createRequire} from 'node:module';
import {readFileSync} from 'node:fs';

const require = createRequire(process.argv[2] + '/');
const job = JSON.parse(readFileSync(process.argv[3], 'utf8'));
if (job.bare) process.env.BIGQUERY_EMULATOR_HOST = job.url;
const {BigQuery} = require('@google-cloud/bigquery');
const {OAuth2Client} = require('google-auth-library');

function client(token) {
  if (job.adc) { // nothing but the endpoint and the environment
    process.env.GOOGLE_APPLICATION_CREDENTIALS = job.tokens[token];
    return new BigQuery({projectId: job.project, apiEndpoint: job.url});
  }
  const authClient = new OAuth2Client();
  authClient.setCredentials({access_token: readFileSync(job.tokens[token], 'utf8')});
  const options = {projectId: job.project, authClient};
  if (!job.bare) options.apiEndpoint = job.url;
  return new BigQuery(options);
}

// A value as the other clients print it too.
function plain(v) {
  if (v === null || v === undefined) return null;
  if (Array.isArray(v)) return v.map(plain);
  if (typeof v === 'object') return String(v.value);
  return String(v);
}

const rows = list => list.map(r => Object.values(r).map(plain));

function options(s) {
  const o = {query: s.sql};
  const params = s.params ?? [];
  if (params.length && params[0].name) {
    o.params = Object.fromEntries(params.map(p => [p.name, p.value]));
    o.types = Object.fromEntries(params.map(p => [p.name, Array.isArray(p.value) ? [p.type] : p.type]));
  } else if (params.length) {
    o.params = params.map(p => p.value);
    o.types = params.map(p => p.type);
  }
  return o;
}

function table(c, s) {
  const [, dataset, name] = s.table.split('.');
  return c.dataset(dataset).table(name);
}

const schema = {fields: [{name: 'a', type: 'INTEGER'}, {name: 'b', type: 'STRING'}]};

async function run(c, s) {
  switch (s.do) {
    case 'create':
      await c.createDataset(s.dataset);
      await c.dataset(s.dataset).createTable(s.table.split('.')[2], {schema});
      return {};
    case 'query':
      return {rows: rows((await c.query(options(s)))[0])};
    case 'job': {
      const [j] = await c.createQueryJob(options(s));
      return {rows: rows((await j.getQueryResults())[0])};
    }
    case 'sum': {
      let n = 0, total = 0;
      for await (const r of c.createQueryStream(s.sql)) {
        n++;
        total += r.x;
      }
      return {rows: [[String(n), String(total)]]};
    }
    case 'dry': {
      const [j] = await c.createQueryJob({query: s.sql, dryRun: true});
      return {state: j.metadata.status.state};
    }
    case 'load': {
      const [j] = await table(c, s).load(s.file, {sourceFormat: 'CSV', schema, writeDisposition: 'WRITE_APPEND'});
      return {state: j.status.state};
    }
    case 'insert':
      await table(c, s).insert(s.rows);
      return {};
    case 'list':
      return {rows: rows((await table(c, s).getRows({maxResults: s.limit, autoPaginate: false}))[0])};
  }
  throw new Error(s.do);
}

const clients = {};
for (const s of job.steps) {
  let out = {};
  try {
    clients[s.as] ??= client(s.as);
    out = await run(clients[s.as], s);
  } catch (e) {
    out = {error: e.message};
  }
  console.log(JSON.stringify({step: s.name, ...out}));
}
