package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/structpb"

	"verbatim.dev/envoy"
	"verbatim.dev/extproc/server"
	"verbatim.dev/recorder/journal"
	"verbatim.dev/recorder/record"
)

// A processor that decides nothing: it puts in what the route needs and sends
// every byte back, with the gateway's own gRPC options. With a journal it also
// does what no recording gate can leave out: the request's bytes are durable
// before they go on, the response's before they go out, an exchange of one
// piece each way in two group commits.

func noopMain(args []string) error {
	fs := flag.NewFlagSet("noop", flag.ContinueOnError)
	socket := fs.String("socket", "", "UNIX socket for Envoy")
	stats := fs.String("stats", "", "UNIX socket for the journal's figures")
	dir := fs.String("journal", "", "journal's folder; none: no journal")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var p extproc.ExternalProcessorServer = noop{}
	if *dir != "" {
		j, err := openJournal(ctx, *dir)
		if err != nil {
			return err
		}
		defer j.Close(context.Background(), "stopped")
		go acknowledge(ctx, j)
		p = floor{j: j}
		l, err := net.Listen("unix", *stats)
		if err != nil {
			return err
		}
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(map[string]any{"journal": j.Stats()})
		}))
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	gs := grpc.NewServer(server.Transport(256<<10, 1024)...)
	extproc.RegisterExternalProcessorServer(gs, p)
	healthpb.RegisterHealthServer(gs, health.NewServer())
	go func() {
		<-ctx.Done()
		gs.Stop()
	}()
	return gs.Serve(l)
}

func openJournal(ctx context.Context, dir string) (*journal.Journal, error) {
	h, err := record.NewTenant()
	if err != nil {
		return nil, err
	}
	tenant, err := h.Public()
	if err != nil {
		return nil, err
	}
	return journal.Open(ctx, journal.Config{
		Dir: dir, Gateway: "floor", Tenant: tenant, Class: "standard", Retention: map[string]time.Duration{"standard": time.Hour},
		Limit: 4 << 30, SegmentSize: 64 << 20,
	})
}

// acknowledge plays a sink that costs nothing.
func acknowledge(ctx context.Context, j *journal.Journal) {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := j.Acknowledge(j.Epoch(), j.Stats().Last); err != nil {
				fmt.Fprintln(os.Stderr, "acknowledge:", err)
			}
		}
	}
}

const maxReply = 62 << 10

func header(name, value string) *core.HeaderValueOption {
	return &core.HeaderValueOption{
		Header:       &core.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// requestHead is the reply that lets a request through.
func requestHead() *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{
		Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{Response: &extproc.CommonResponse{
			ClearRouteCache: true,
			HeaderMutation: &extproc.HeaderMutation{SetHeaders: []*core.HeaderValueOption{
				header("authorization", "Bearer canary"), header("accept-encoding", "identity"), header(envoy.UpstreamHeader, "local.rest"),
			}},
		}}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			envoy.MetadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{envoy.AdmittedKey: structpb.NewBoolValue(true)}}),
		}},
	}
}

func responseHead() *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extproc.HeadersResponse{
		Response: &extproc.CommonResponse{HeaderMutation: &extproc.HeaderMutation{SetHeaders: []*core.HeaderValueOption{
			header("x-verbatim-receipt", "01J0000000000000000000000-000001"),
		}}},
	}}}
}

// pieces returns the replies that send b back.
func pieces(request bool, b []byte, end bool) (out []*extproc.ProcessingResponse) {
	for {
		n := min(len(b), maxReply)
		body := &extproc.BodyResponse{Response: &extproc.CommonResponse{BodyMutation: &extproc.BodyMutation{
			Mutation: &extproc.BodyMutation_StreamedResponse{StreamedResponse: &extproc.StreamedBodyResponse{Body: b[:n], EndOfStream: end && n == len(b)}},
		}}}
		if request {
			out = append(out, &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestBody{RequestBody: body}})
		} else {
			out = append(out, &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: body}})
		}
		if b = b[n:]; len(b) == 0 {
			return out
		}
	}
}

type noop struct {
	extproc.UnimplementedExternalProcessorServer
}

func (noop) Process(s extproc.ExternalProcessor_ProcessServer) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		var out []*extproc.ProcessingResponse
		switch r := m.Request.(type) {
		case *extproc.ProcessingRequest_RequestHeaders:
			out = append(out, requestHead())
		case *extproc.ProcessingRequest_RequestBody:
			out = pieces(true, r.RequestBody.Body, r.RequestBody.EndOfStream)
		case *extproc.ProcessingRequest_ResponseHeaders:
			out = append(out, responseHead())
		case *extproc.ProcessingRequest_ResponseBody:
			out = pieces(false, r.ResponseBody.Body, r.ResponseBody.EndOfStream)
		default:
			return errors.New("a message that the bench does not send")
		}
		for _, o := range out {
			if err := s.Send(o); err != nil {
				return err
			}
		}
	}
}

// floor is noop with the commits of a recording gate, and no thought.
type floor struct {
	extproc.UnimplementedExternalProcessorServer
	j *journal.Journal
}

// under is what waits for its commit.
type under struct {
	ticket *record.Ticket
	out    []*extproc.ProcessingResponse
}

// An intent and an outcome of the usual size.
var (
	someIntent  = []byte(`{"intent":"` + strings.Repeat("i", 1800) + `"}`)
	someOutcome = []byte(`{"outcome":"` + strings.Repeat("o", 700) + `"}`)
	someHead    = []byte(`{"status":200,"headers":"` + strings.Repeat("h", 150) + `"}`)
)

const floorSession = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst"

func (f floor) Process(s extproc.ExternalProcessor_ProcessServer) error {
	// 16 pieces of up to 256 KiB: as much as Verbatim may have under way.
	queue := make(chan under, 16)
	sent := make(chan error, 1)
	var broken atomic.Bool
	go func() {
		var failed error
		for u := range queue {
			if failed != nil {
				continue
			}
			if failed = u.ticket.Wait(s.Context()); failed != nil {
				broken.Store(true)
				continue
			}
			for _, o := range u.out {
				if failed = s.Send(o); failed != nil {
					broken.Store(true)
					break
				}
			}
		}
		sent <- failed
	}()
	err := f.receive(s, queue, &broken)
	close(queue)
	return errors.Join(<-sent, err)
}

func (f floor) receive(s extproc.ExternalProcessor_ProcessServer, queue chan<- under, broken *atomic.Bool) error {
	var (
		exchange uint64
		request  []byte
		drafts   []record.Draft
		out      []*extproc.ProcessingResponse
		held     []byte // the newest piece: its fate depends on the next message
	)
	draft := func(k record.Kind, d record.Direction, flags uint8, b []byte) {
		for {
			n := min(len(b), record.MaxPiece)
			drafts = append(drafts, record.Draft{Kind: k, Exchange: exchange, Direction: d, Flags: flags, Session: floorSession, Body: b[:n]})
			if b = b[n:]; len(b) == 0 {
				return
			}
		}
	}
	commit := func() {
		t := f.j.Append(drafts...)
		if exchange == 0 {
			exchange = t.ID.Sequence
		}
		queue <- under{t, out}
		drafts, out = nil, nil
	}
	for !broken.Load() {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		switch r := m.Request.(type) {
		case *extproc.ProcessingRequest_RequestHeaders:
		case *extproc.ProcessingRequest_RequestBody:
			request = append(request, r.RequestBody.Body...)
			if r.RequestBody.EndOfStream {
				draft(record.KindIntent, 0, 0, someIntent)
				draft(record.KindPayload, record.DirectionRequest, 0, request)
				out = append([]*extproc.ProcessingResponse{requestHead()}, pieces(true, request, true)...)
				commit()
			}
		case *extproc.ProcessingRequest_ResponseHeaders:
			draft(record.KindPayload, record.DirectionResponse, record.FlagHead, someHead)
			out = append(out, responseHead())
		case *extproc.ProcessingRequest_ResponseBody:
			b, end := r.ResponseBody.Body, r.ResponseBody.EndOfStream
			if held != nil && (!end || len(b) > 0) {
				draft(record.KindPayload, record.DirectionResponse, 0, held)
				out = append(out, pieces(false, held, false)...)
				held = nil
				if !end {
					commit()
				}
			}
			if len(b) > 0 {
				held = b
			}
			if end {
				if len(held) > 0 {
					draft(record.KindPayload, record.DirectionResponse, 0, held)
				}
				draft(record.KindOutcome, 0, 0, someOutcome)
				out = append(out, pieces(false, held, true)...)
				held = nil
				commit()
			}
		default:
			return errors.New("a message that the bench does not send")
		}
	}
	return nil
}
