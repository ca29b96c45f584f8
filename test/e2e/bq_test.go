package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// runBQ does the steps with the bq program, one run of it each.
func runBQ(ctx context.Context, program, dir string, j job) ([]result, error) {
	var out []result
	for _, s := range j.Steps {
		r, err := bqStep(ctx, program, dir, j, s)
		r.Step = s.Name
		if err != nil {
			r.Error = err.Error()
		}
		out = append(out, r)
	}
	return out, nil
}

func bqStep(ctx context.Context, program, dir string, j job, s step) (result, error) {
	bq := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program, append([]string{"--api", j.URL, "--project_id", j.Project, "--quiet", "--headless", "--format=json"}, args...)...)
		cmd.Env = append(os.Environ(), "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE="+j.Tokens[s.As], "CLOUDSDK_CONFIG="+filepath.Join(dir, "gcloud"), "HOME="+dir)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return out, fmt.Errorf("%w: %s%s", err, out, errs.Bytes())
		}
		return out, nil
	}
	rows := func(args ...string) (result, error) {
		out, err := bq(args...)
		if err != nil {
			return result{}, err
		}
		r, err := bqRows(out)
		return result{Rows: r}, err
	}
	local := strings.TrimPrefix(s.Table, j.Project+".")
	query := []string{"query", "--use_legacy_sql=false", "--max_rows=100000"}
	switch s.Do {
	case "create":
		if _, err := bq("mk", "--dataset", s.Dataset); err != nil {
			return result{}, err
		}
		_, err := bq("mk", "--table", local, "a:INTEGER,b:STRING")
		return result{}, err
	case "query", "job", "sum":
		for _, p := range s.Params {
			v, ok := p.Value.(string)
			if !ok {
				b, err := json.Marshal(p.Value)
				if err != nil {
					return result{}, err
				}
				v = string(b)
			}
			kind := p.Type
			if strings.HasPrefix(v, "[") {
				kind = "ARRAY<" + kind + ">"
			}
			query = append(query, "--parameter="+p.Name+":"+kind+":"+v)
		}
		r, err := rows(append(query, s.SQL)...)
		if err != nil || s.Do != "sum" {
			return r, err
		}
		sum := 0
		for _, row := range r.Rows {
			var x int
			if _, err := fmt.Sscan(row[0].(string), &x); err != nil {
				return r, err
			}
			sum += x
		}
		return result{Rows: [][]any{{fmt.Sprint(len(r.Rows)), fmt.Sprint(sum)}}}, nil
	case "dry":
		out, err := bq(append(query, "--dry_run", s.SQL)...)
		if err != nil {
			return result{}, err
		}
		var answer struct {
			Status struct{ State string }
		}
		return result{State: answer.Status.State}, json.Unmarshal(out, &answer)
	case "load":
		_, err := bq("load", "--source_format=CSV", local, s.File, "a:INTEGER,b:STRING")
		return result{State: "DONE"}, err
	case "insert":
		var lines bytes.Buffer
		for _, r := range s.Rows {
			b, err := json.Marshal(r)
			if err != nil {
				return result{}, err
			}
			lines.Write(append(b, '\n'))
		}
		name := filepath.Join(dir, "rows.json")
		if err := os.WriteFile(name, lines.Bytes(), 0o600); err != nil {
			return result{}, err
		}
		_, err := bq("insert", local, name)
		return result{}, err
	case "list":
		return rows("head", fmt.Sprintf("--max_rows=%d", s.Limit), local)
	}
	return result{}, fmt.Errorf("no step %q", s.Do)
}

// bqRows reads rows as bq prints them; of a script, those of each statement, of
// which the last are wanted.
func bqRows(out []byte) ([][]any, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(out, &parts); err != nil {
		return nil, fmt.Errorf("bq printed %.300q: %w", out, err)
	}
	if n := len(parts); n > 0 && bytes.HasPrefix(parts[n-1], []byte("[")) {
		return bqRows(parts[n-1])
	}
	rows := [][]any{}
	for _, p := range parts {
		var o map[string]any
		if err := json.Unmarshal(p, &o); err != nil {
			return nil, fmt.Errorf("bq printed %.300q: %w", out, err)
		}
		var r []any
		for _, name := range slices.Sorted(maps.Keys(o)) {
			r = append(r, o[name])
		}
		rows = append(rows, r)
	}
	return rows, nil
}
