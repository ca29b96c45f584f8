package index

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDuckDB reads an index with DuckDB and with Arrow's reader, of the
// Python that the emulator runs in ("make run" installs it): other programs than the one that
// wrote it.
func TestDuckDB(t *testing.T) {
	tools := os.Getenv("VERBATIM_TOOLS")
	if tools == "" {
		tools = filepath.Join("..", "..", ".tools")
	}
	python := filepath.Join(tools, "emulator", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		t.Skipf("no DuckDB: %v", err)
	}
	w := newWorld()
	s := folder(t)
	mustBuild(t, config(t, w.v, s))
	script := `
import sys, duckdb, pyarrow.parquet as pq, glob
root = sys.argv[1]
files = sorted(glob.glob(root + '/exchanges/*/*.parquet'))
db = duckdb.connect()
db.execute("SET TimeZone='UTC'")
db.execute("CREATE VIEW exchanges AS SELECT * FROM read_parquet('%s/exchanges/*/*.parquet', hive_partitioning=true)" % root)
types = dict((r[0], r[1]) for r in db.execute("DESCRIBE exchanges").fetchall())
for column in ('exchange', 'received', 'group_names', 'reads', 'dry_run', 'row_count', 'cache_hit', 'dt', 'sequence', 'status'):
    print(column, types[column])
print(db.execute("SELECT count(*), count(DISTINCT exchange) FROM exchanges").fetchone())
print(db.execute("SELECT subject, sql, group_names, row_count, strftime(received, '%Y-%m-%d %H:%M'), dt FROM exchanges WHERE repository = 'corp/etl' AND dt = '2026-03-14' AND result = 'delivered' ORDER BY sequence LIMIT 1").fetchone())
print(db.execute("SELECT count(*) FROM exchanges WHERE list_contains(reasons, 'read_only')").fetchone())
print(db.execute("SELECT count(*) FROM exchanges WHERE decided IS NULL OR email IS NULL").fetchone())
used = set()
for f in files:
    meta = pq.ParquetFile(f).metadata
    for g in range(meta.num_row_groups):
        for c in range(meta.num_columns):
            used.update(meta.row_group(g).column(c).encodings)
            used.add(meta.row_group(g).column(c).compression)
print(sorted(used), sum(pq.read_table(f, partitioning=None).num_rows for f in files))
`
	out, err := exec.CommandContext(t.Context(), python, "-c", script, s.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := strings.TrimSpace(`
exchange VARCHAR
received TIMESTAMP WITH TIME ZONE
group_names VARCHAR[]
reads VARCHAR[]
dry_run BOOLEAN
row_count BIGINT
cache_hit BOOLEAN
dt DATE
sequence BIGINT
status INTEGER
(28, 28)
('alice', 'SELECT name FROM ` + "`p1.sales.orders`" + `', ['corp/analysts', 'corp/all'], 3, '2026-03-14 09:00', datetime.date(2026, 3, 14))
(22,)
(25,)
['PLAIN', 'RLE', 'RLE_DICTIONARY', 'ZSTD'] 28
`)
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
