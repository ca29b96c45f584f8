package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"cloud.google.com/go/bigquery"
	"cloud.google.com/go/civil"
	"golang.org/x/oauth2"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
)

// runGo does the steps with Go's client.
func runGo(ctx context.Context, j job) ([]result, error) {
	clients := map[string]*bigquery.Client{}
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	endpoint := j.URL + "/bigquery/v2/"
	if j.Bare {
		endpoint = j.URL
	}
	var out []result
	for _, s := range j.Steps {
		c := clients[s.As]
		if c == nil {
			options := []option.ClientOption{option.WithEndpoint(endpoint)}
			if j.ADC { // nothing but the endpoint and the environment
				os.Setenv("GOOGLE_APPLICATION_CREDENTIALS", j.Tokens[s.As])
				defer os.Unsetenv("GOOGLE_APPLICATION_CREDENTIALS")
			} else {
				token, err := os.ReadFile(j.Tokens[s.As])
				if err != nil {
					return nil, err
				}
				options = append(options, option.WithTokenSource(oauth2.StaticTokenSource(&oauth2.Token{AccessToken: string(token)})))
			}
			var err error
			if c, err = bigquery.NewClient(ctx, j.Project, options...); err != nil {
				return nil, err
			}
			clients[s.As] = c
		}
		r, err := goStep(ctx, c, s)
		r.Step = s.Name
		if err != nil {
			r.Error = err.Error()
		}
		out = append(out, r)
	}
	return out, nil
}

var goSchema = bigquery.Schema{{Name: "a", Type: bigquery.IntegerFieldType}, {Name: "b", Type: bigquery.StringFieldType}}

func goStep(ctx context.Context, c *bigquery.Client, s step) (result, error) {
	q := c.Query(s.SQL)
	for _, p := range s.Params {
		q.Parameters = append(q.Parameters, bigquery.QueryParameter{Name: p.Name, Value: p.Value})
	}
	var table *bigquery.Table
	if s.Table != "" {
		p := strings.Split(s.Table, ".")
		table = c.Dataset(p[1]).Table(p[2])
	}
	switch s.Do {
	case "create":
		if err := c.Dataset(s.Dataset).Create(ctx, nil); err != nil {
			return result{}, err
		}
		return result{}, table.Create(ctx, &bigquery.TableMetadata{Schema: goSchema})
	case "query":
		it, err := q.Read(ctx)
		if err != nil {
			return result{}, err
		}
		return goRows(it, 0)
	case "job":
		it, err := goJob(ctx, q)
		if err != nil {
			return result{}, err
		}
		return goRows(it, 0)
	case "sum":
		it, err := goJob(ctx, q)
		if err != nil {
			return result{}, err
		}
		var n, sum int64
		for {
			var row []bigquery.Value
			if err := it.Next(&row); errors.Is(err, iterator.Done) {
				break
			} else if err != nil {
				return result{}, err
			}
			n++
			sum += row[0].(int64)
		}
		return result{Rows: [][]any{{fmt.Sprint(n), fmt.Sprint(sum)}}}, nil
	case "dry":
		q.DryRun = true
		job, err := q.Run(ctx)
		if err != nil {
			return result{}, err
		}
		return goState(job.LastStatus())
	case "load":
		f, err := os.Open(s.File)
		if err != nil {
			return result{}, err
		}
		defer f.Close()
		source := bigquery.NewReaderSource(f)
		source.Schema = goSchema
		job, err := table.LoaderFrom(source).Run(ctx)
		if err != nil {
			return result{}, err
		}
		status, err := job.Wait(ctx)
		if err != nil {
			return result{}, err
		}
		return goState(status)
	case "insert":
		var rows []*bigquery.ValuesSaver
		for _, r := range s.Rows {
			rows = append(rows, &bigquery.ValuesSaver{Schema: goSchema, Row: []bigquery.Value{r["a"], r["b"]}})
		}
		return result{}, table.Inserter().Put(ctx, rows)
	case "list":
		it := table.Read(ctx)
		it.PageInfo().MaxSize = s.Limit
		return goRows(it, s.Limit)
	}
	return result{}, fmt.Errorf("no step %q", s.Do)
}

func goJob(ctx context.Context, q *bigquery.Query) (*bigquery.RowIterator, error) {
	job, err := q.Run(ctx)
	if err != nil {
		return nil, err
	}
	return job.Read(ctx)
}

func goState(s *bigquery.JobStatus) (result, error) {
	if s.State == bigquery.Done {
		return result{State: "DONE"}, s.Err()
	}
	return result{State: fmt.Sprint(s.State)}, s.Err()
}

func goRows(it *bigquery.RowIterator, limit int) (result, error) {
	out := [][]any{}
	for limit == 0 || len(out) < limit {
		var row []bigquery.Value
		if err := it.Next(&row); errors.Is(err, iterator.Done) {
			break
		} else if err != nil {
			return result{}, err
		}
		r := make([]any, len(row))
		for i, v := range row {
			r[i] = goPlain(v)
		}
		out = append(out, r)
	}
	return result{Rows: out}, nil
}

func goPlain(v bigquery.Value) any {
	switch v := v.(type) {
	case nil:
		return nil
	case []bigquery.Value:
		list := make([]any, len(v))
		for i := range v {
			list[i] = goPlain(v[i])
		}
		return list
	case civil.Date:
		return v.String()
	}
	return fmt.Sprint(v)
}
