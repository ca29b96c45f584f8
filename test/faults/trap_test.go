package faults

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"verbatim.dev/deploy/local/emulator"
	"verbatim.dev/deploy/local/tools"
	"verbatim.dev/envoy"
	"verbatim.dev/extproc/server"
	"verbatim.dev/test/harness"
)

// quitter is a processor that ends its stream cleanly and too early: what a
// plain bug in a handler does. Envoy lets the rest pass unprocessed then, even
// with failure_mode_allow: false.
type quitter struct {
	extproc.UnimplementedExternalProcessorServer
	after string // "head": at the request's headers; "response": in the middle of the response
}

func (q quitter) Process(s extproc.ExternalProcessor_ProcessServer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		switch r := m.Request.(type) {
		case *extproc.ProcessingRequest_RequestHeaders:
			if q.after == "head" {
				return nil
			}
			err = s.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{
				Response: &extproc.CommonResponse{ClearRouteCache: true, HeaderMutation: &extproc.HeaderMutation{SetHeaders: upstream}},
			}}})
		case *extproc.ProcessingRequest_RequestBody:
			body := &extproc.BodyResponse{Response: &extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{Mutation: &extproc.BodyMutation_StreamedResponse{
				StreamedResponse: &extproc.StreamedBodyResponse{Body: r.RequestBody.Body, EndOfStream: r.RequestBody.EndOfStream}}}}}
			err = s.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestBody{RequestBody: body}})
		case *extproc.ProcessingRequest_ResponseHeaders:
			err = s.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{}}})
		case *extproc.ProcessingRequest_ResponseBody:
			// One chunk is passed on, then the handler leaves.
			body := &extproc.BodyResponse{Response: &extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{
				Mutation: &extproc.BodyMutation_StreamedResponse{StreamedResponse: &extproc.StreamedBodyResponse{Body: r.ResponseBody.Body[:min(1000, len(r.ResponseBody.Body))]}},
			}}}
			if err = s.Send(&extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: body}}); err == nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

var upstream = []*core.HeaderValueOption{
	{Header: &core.HeaderValue{Key: envoy.UpstreamHeader, RawValue: []byte("local.rest")}, AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
	{Header: &core.HeaderValue{Key: "authorization", RawValue: []byte("Bearer " + harness.UpstreamToken)}, AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD},
}

// TestCleanEarlyEndIsShutTwice proves each of the two locks against the fail
// open of a clean close alone, and that without both the trap is real.
func TestCleanEarlyEndIsShutTwice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	binary, err := tools.EnsureEnvoy(ctx, "", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name              string
		after             string
		interceptor, rbac bool
		open              bool // data passes, or the cut response ends cleanly
	}{
		{"no lock, at the head: the trap is real", "head", false, false, true},
		{"the interceptor alone, at the head", "head", true, false, false},
		{"RBAC alone, at the head", "head", false, true, false},
		{"no lock, within the response: the trap is real", "response", false, false, true},
		{"the interceptor alone, within the response", "response", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			up, err := emulator.Start(ctx, emulator.RunConfig{})
			if err != nil {
				t.Fatal(err)
			}
			defer up.Close()
			dir, err := os.MkdirTemp("", "verbatim-trap-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			serveProcessor(t, filepath.Join(dir, "p.sock"), quitter{after: c.after}, c.interceptor)
			bootstrap, err := envoy.Render(envoy.Params{
				Listen: "127.0.0.1:0", Admin: "127.0.0.1:0", Processor: envoy.Processor{Socket: filepath.Join(dir, "p.sock")},
				Connections: []envoy.Connection{{Name: "local", REST: up.URL}},
			})
			if err != nil {
				t.Fatal(err)
			}
			e, err := tools.StartEnvoy(ctx, tools.EnvoyConfig{Binary: binary, Bootstrap: weaken(t, bootstrap, c.rbac), Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Stop()
			method, path, body := http.MethodGet, "/discovery/v1/apis/bigquery/v2/rest", ""
			if c.after == "response" {
				method, path = http.MethodPost, "/bigquery/v2/projects/p/queries"
				body = `{"query":"` + harness.Synthetic(3_000_000) + `","useLegacySql":false}`
			}
			req, err := http.NewRequestWithContext(ctx, method, "http://"+e.Listener+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			a := harness.Send(req)
			clean := a.Err == nil && a.Status == 200
			if clean != c.open {
				t.Errorf("status %d, %d bytes, error %v: clean success %v, want %v\n%.400s", a.Status, len(a.Body), a.Err, clean, c.open, a.Body)
			}
			if !c.open && len(a.Body) > 2000 {
				t.Errorf("%d bytes passed", len(a.Body))
			}
		})
	}
}

func serveProcessor(t *testing.T, socket string, p extproc.ExternalProcessorServer, interceptor bool) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if interceptor {
		options = append(options, grpc.ChainStreamInterceptor(server.NoCleanEarlyEnd))
	}
	gs := grpc.NewServer(options...)
	extproc.RegisterExternalProcessorServer(gs, p)
	healthpb.RegisterHealthServer(gs, health.NewServer())
	done := make(chan struct{})
	go func() {
		defer close(done)
		gs.Serve(l)
	}()
	t.Cleanup(func() { gs.Stop(); <-done })
}

// weaken sends all requests to the upstream, whatever the processor says, and
// takes the RBAC filter away unless it is to stay.
func weaken(t *testing.T, bootstrap []byte, rbac bool) []byte {
	t.Helper()
	var b map[string]any
	if err := yaml.Unmarshal(bootstrap, &b); err != nil {
		t.Fatal(err)
	}
	at := func(v any, path ...any) any {
		for _, p := range path {
			switch k := p.(type) {
			case string:
				v = v.(map[string]any)[k]
			case int:
				v = v.([]any)[k]
			}
		}
		return v
	}
	hcm := at(b, "static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config").(map[string]any)
	route := at(hcm, "route_config", "virtual_hosts", 0, "routes", 0, "route").(map[string]any)
	delete(route, "cluster_header")
	route["cluster"] = "local.rest"
	if !rbac {
		var kept []any
		for _, f := range hcm["http_filters"].([]any) {
			if f.(map[string]any)["name"] != "envoy.filters.http.rbac" {
				kept = append(kept, f)
			}
		}
		hcm["http_filters"] = kept
	}
	out, err := yaml.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
