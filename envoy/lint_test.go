package envoy

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// edit replaces text, which must be there, once.
type edit struct{ old, new string }

// breaches are bootstraps, each broken in one way.
var breaches = []struct {
	name, variant string
	edits         []edit
	rule          string
	line          string // text of the line that the finding should point at; empty: any
}{
	{"fail open", "local", []edit{{"failure_mode_allow: false", "failure_mode_allow: true"}}, "fail-closed", "failure_mode_allow"},
	{"body streamed", "local", []edit{{"request_body_mode: FULL_DUPLEX_STREAMED", "request_body_mode: STREAMED"}}, "modes", "request_body_mode"},
	{"response body not sent", "local", []edit{{"response_body_mode: FULL_DUPLEX_STREAMED", "response_body_mode: NONE"}}, "modes", "response_body_mode"},
	{"headers skipped", "local", []edit{{"response_header_mode: SEND", "response_header_mode: SKIP"}}, "modes", "response_header_mode"},
	{"trailers skipped", "local", []edit{{"                response_trailer_mode: SEND\n", ""}}, "modes", ""},
	{"no modes", "local", []edit{{"processing_mode:\n", "processing_mode: {}\n              response_attributes: []\n              filter_metadata:\n"}}, "modes", ""},
	{"two ext_proc", "local", []edit{{"          # The second lock", secondExtProc + "          # The second lock"}}, "one-ext-proc", ""},
	{"no ext_proc", "bare", nil, "bypass", ""},
	{"RBAC gone", "local", []edit{{"envoy.filters.http.rbac", "x"}, {rbacText, ""}}, "rbac-behind", ""},
	{"RBAC denies the admitted", "local", []edit{{"action: ALLOW", "action: DENY"}}, "admission", ""},
	{"RBAC logs only", "local", []edit{{"              rules:\n                action", "              shadow_rules:\n                action"}}, "admission", ""},
	{"RBAC inverted", "local", []edit{{"value: {bool_match: true}", "value: {bool_match: true}, invert: true"}}, "admission", ""},
	{"RBAC another key", "local", []edit{{"[{key: admitted}]", "[{key: seen}]"}}, "admission", ""},
	{"RBAC route metadata", "local", []edit{{"metadata_source: DYNAMIC", "metadata_source: ROUTE"}}, "admission", ""},
	{"RBAC second policy", "local", []edit{{"                policies:\n", "                policies:\n                  all: {permissions: [{any: true}], principals: [{any: true}]}\n"}}, "admission", ""},
	{"RBAC disabled", "local", []edit{{"          - name: envoy.filters.http.rbac\n", "          - name: envoy.filters.http.rbac\n            disabled: true\n"}}, "disabled-filter", ""},
	{"ext_proc optional", "local", []edit{{"          - name: envoy.filters.http.ext_proc\n", "          - name: envoy.filters.http.ext_proc\n            is_optional: true\n"}}, "disabled-filter", ""},
	{"a filter behind", "local", []edit{{"          - name: envoy.filters.http.router\n", secondExtProc + "          - name: envoy.filters.http.router\n"}}, "after-ext-proc", ""},
	{"an unknown filter", "local", []edit{{"          http_filters:\n", "          http_filters:\n          - name: lua\n            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}\n"}}, "parse", "filters.http.lua"},
	{"a known message as a filter", "local", []edit{{"          http_filters:\n", "          http_filters:\n          - name: x\n            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /x, log_format: {text_format_source: {inline_string: x}}}\n"}}, "filters", "- name: x"},
	{"filter from elsewhere", "local", []edit{{"          http_filters:\n", "          http_filters:\n          - name: x\n            config_discovery: {config_source: {ads: {}}, type_urls: [x]}\n"}}, "static-only", ""},
	{"per-route override of the route", "local", []edit{{"                route:\n", overridden + "                route:\n"}}, "no-per-route-override", "typed_per_filter_config"},
	{"per-route override of the host", "local", []edit{{"              domains:", strings.ReplaceAll(overridden, "                ", "              ") + "              domains:"}}, "no-per-route-override", ""},
	{"per-route override hidden", "local", []edit{{"              emit_client_span: false\n", "              emit_client_span: false\n              filter_metadata: {}\n"}, {"    common_lb_config:", "    metadata: {typed_filter_metadata: {x: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute, disabled: true}}}\n    common_lb_config:"}}, "no-per-route-override", ""},
	{"retries", "local", []edit{{"                  timeout: 0s\n", "                  timeout: 0s\n                  retry_policy: {retry_on: 5xx}\n"}}, "no-retries", "retry_policy"},
	{"retries of the host", "local", []edit{{"              domains:", "              retry_policy: {retry_on: 5xx}\n              domains:"}}, "no-retries", ""},
	{"retries of the cluster", "local", []edit{{"        explicit_http_config: {http_protocol_options: {}}", "        explicit_http_config: {http_protocol_options: {}}\n        retry_policy: {retry_on: 5xx}"}}, "no-retries", ""},
	{"hedging", "local", []edit{{"                  timeout: 0s\n", "                  timeout: 0s\n                  hedge_policy: {initial_requests: 2}\n"}}, "no-retries", ""},
	{"admin in the open", "local", []edit{{`admin:
  address: {socket_address: {address: "127.0.0.1"`, `admin:
  address: {socket_address: {address: "0.0.0.0"`}}, "admin-loopback", "0.0.0.0"},
	{"mode override", "local", []edit{{"failure_mode_allow: false", "allow_mode_override: true"}}, "no-mode-override", "allow_mode_override"},
	{"observability mode", "local", []edit{{"failure_mode_allow: false", "observability_mode: true"}}, "no-observability-mode", ""},
	{"denials ignored", "local", []edit{{"failure_mode_allow: false", "disable_immediate_response: true"}}, "immediate-response", ""},
	{"some headers", "local", []edit{{"failure_mode_allow: false", "forward_rules: {allowed_headers: {patterns: [{exact: host}]}}"}}, "all-headers", ""},
	{"content length", "local", []edit{{"failure_mode_allow: false", "allow_content_length_header: true"}}, "content-length", ""},
	{"http processor", "local", []edit{{"failure_mode_allow: false", "http_service: {}"}}, "grpc-processor", ""},
	{"modifier", "local", []edit{{"failure_mode_allow: false", "max_message_timeout: 1s"}}, "unexpected-field", "max_message_timeout"},
	{"route kept", "local", []edit{{"route_cache_action: DEFAULT", "route_cache_action: RETAIN"}}, "route-cache", "RETAIN"},
	{"route kept, old way", "local", []edit{{"route_cache_action: DEFAULT", "disable_clear_route_cache: true"}}, "route-cache", ""},
	{"metadata not taken", "local", []edit{{"untyped: [verbatim]", "untyped: [other]"}}, "metadata", ""},
	{"mutations dropped in silence", "local", []edit{{"disallow_is_error: true", "disallow_is_error: false"}}, "mutation-rules", "disallow_is_error"},
	{"host may change", "local", []edit{{"allow_envoy: true", "allow_all_routing: true"}}, "mutation-rules", "allow_all_routing"},
	{"path may not change", "local", []edit{{"allow_envoy: true", "disallow_system: true"}}, "mutation-rules", ""},
	{"authorization may not change", "local", []edit{{`disallow_expression: {regex: "host|`, `disallow_expression: {regex: "host|auth.*|`}}, "mutation-rules", "auth.*"},
	{"processor unknown", "local", []edit{{"envoy_grpc: {cluster_name: verbatim.processor", "envoy_grpc: {cluster_name: other"}}, "processor", ""},
	{"processor by another client", "local", []edit{{"envoy_grpc: {cluster_name: verbatim.processor, skip_envoy_headers: true}", "google_grpc: {target_uri: x, stat_prefix: x}"}}, "processor", ""},
	{"processor unlimited", "local", []edit{{"    circuit_breakers: {thresholds: [{max_requests: 10000, max_pending_requests: 1024, track_remaining: true}]}\n", ""}}, "processor", ""},
	{"processor unwatched", "local", []edit{{"grpc_health_check: {}", "tcp_health_check: {}"}}, "processor", ""},
	{"processor ejected", "local", []edit{{"enforcing_consecutive_5xx: 0", "enforcing_consecutive_5xx: 100"}}, "processor", ""},
	{"processor without a client certificate", "production", []edit{{clientCertificate, ""}}, "processor", ""},
	{"processor in the open", "local", []edit{{`{pipe: {path: "/run/verbatim/extproc.sock"}}`, "{socket_address: {address: 10.0.0.1, port_value: 1}}"}}, "plaintext", ""},
	{"internal redirects", "local", []edit{{"                  timeout: 0s\n", "                  timeout: 0s\n                  internal_redirect_policy: {}\n"}}, "no-internal-redirect", ""},
	{"mirror", "local", []edit{{"                  timeout: 0s\n", "                  timeout: 0s\n                  request_mirror_policies: [{cluster: emulator.rest}]\n"}}, "no-mirror", ""},
	{"mirror of the cluster", "local", []edit{{"        explicit_http_config: {http_protocol_options: {}}", "        explicit_http_config: {http_protocol_options: {}}\n        request_mirror_policies: [{cluster: emulator.rest}]"}}, "no-mirror", ""},
	{"upgrades", "local", []edit{{"          merge_slashes: true\n", "          merge_slashes: true\n          upgrade_configs: [{upgrade_type: websocket}]\n"}}, "no-upgrades", "upgrade_configs"},
	{"upgrades of the route", "local", []edit{{"                  timeout: 0s\n", "                  timeout: 0s\n                  upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]\n"}}, "no-upgrades", ""},
	{"connect", "local", []edit{{"            max_concurrent_streams: 100\n", "            allow_connect: true\n"}}, "no-upgrades", "allow_connect"},
	{"upstream header not stripped", "local", []edit{{"              - remove: x-verbatim-upstream\n", ""}}, "upstream-header", ""},
	{"upstream header set for all", "local", []edit{{"              - append:\n", "              - append: {header: {key: X-Verbatim-Upstream, value: emulator.rest}}\n              - append:\n"}}, "upstream-header", ""},
	{"token set for all", "local", []edit{{"              - append:\n", "              - append: {header: {key: Authorization, value: x}}\n              - append:\n"}}, "upstream-header", ""},
	{"no early mutation", "local", []edit{{"          early_header_mutation_extensions:\n", "          early_header_mutation_extensions: []\n          original_ip_detection_extensions:\n"}}, "upstream-header", ""},
	{"envoy headers not stripped", "local", []edit{{"prefix: x-envoy-", "prefix: x-envoyer-"}}, "envoy-headers", ""},
	{"encoding left open", "local", []edit{{"value: identity", "value: gzip"}}, "accept-encoding", ""},
	{"encoding appended", "local", []edit{{"append_action: OVERWRITE_IF_EXISTS_OR_ADD", "append_action: ADD_IF_ABSENT"}}, "accept-encoding", ""},
	{"underscores", "local", []edit{{"headers_with_underscores_action: REJECT_REQUEST", "headers_with_underscores_action: DROP_HEADER"}}, "underscores", "DROP_HEADER"},
	{"escaped slashes", "local", []edit{{"path_with_escaped_slashes_action: REJECT_REQUEST", "path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD"}}, "escaped-slashes", "UNESCAPE"},
	{"path not normalised", "local", []edit{{"normalize_path: true", "normalize_path: false"}}, "normalize-path", "normalize_path"},
	{"slashes not merged", "local", []edit{{"          merge_slashes: true\n", ""}}, "normalize-path", ""},
	{"no idle timeout", "local", []edit{{"stream_idle_timeout: 660s", "stream_idle_timeout: 0s"}}, "idle-timeout", "stream_idle_timeout"},
	{"slow readers cut off", "local", []edit{{"          delayed_close_timeout: 30s\n", ""}}, "delayed-close", ""},
	{"slow readers cut off soon", "local", []edit{{"delayed_close_timeout: 30s", "delayed_close_timeout: 5s"}}, "delayed-close", "delayed_close_timeout"},
	{"errors in another shape", "local", []edit{{`json_format: {error: {code: "%RESPONSE_CODE%"`, `json_format: {problem: {code: "%RESPONSE_CODE%"`}}, "local-replies", ""},
	{"a second route", "local", []edit{{"              - name: all\n", "              - {name: other, match: {prefix: /x}, route: {cluster_header: x-verbatim-upstream, auto_host_rewrite: true, timeout: 0s}, request_headers_to_remove: [x-verbatim-upstream]}\n              - name: all\n"}}, "one-route", ""},
	{"some hosts only", "local", []edit{{`domains: ["*"]`, "domains: [example.com]"}}, "one-route", ""},
	{"a fixed cluster", "local", []edit{{"cluster_header: x-verbatim-upstream", "cluster: emulator.rest"}}, "cluster-header", ""},
	{"another header", "local", []edit{{"cluster_header: x-verbatim-upstream", "cluster_header: x-goog-api-client"}}, "cluster-header", ""},
	{"the header goes upstream", "local", []edit{{"request_headers_to_remove: [x-verbatim-upstream, ", "request_headers_to_remove: ["}}, "cluster-header", ""},
	{"client's host", "local", []edit{{"auto_host_rewrite: true", "auto_host_rewrite: false"}}, "host", ""},
	{"route timeout", "local", []edit{{"timeout: 0s", "timeout: 15s"}}, "timeout", ""},
	{"default route timeout", "local", []edit{{"                  timeout: 0s\n", ""}}, "timeout", ""},
	{"headers added", "local", []edit{{"              domains:", "              request_headers_to_add: [{header: {key: authorization, value: x}}]\n              domains:"}}, "unexpected-field", ""},
	{"another listener", "local", []edit{{"  listeners:\n", "  listeners:\n" + sideDoor}}, "bypass", ""},
	{"another listener by TCP", "local", []edit{{"  listeners:\n", "  listeners:\n" + strings.ReplaceAll(tcpDoor, "TYPE", "access_loggers.file.v3.FileAccessLog, path: /x")}}, "bypass", ""},
	{"another filter chain", "local", []edit{{"    filter_chains:\n", "    default_filter_chain: {filters: [{name: x, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /x}}]}\n    filter_chains:\n"}}, "bypass", ""},
	{"router's own filters", "local", []edit{{"              suppress_envoy_headers: true", "              suppress_envoy_headers: true\n              upstream_http_filters: [{name: x}]"}}, "filters", ""},
	{"gRPC in HTTP/1.1", "local", []edit{{"        explicit_http_config:\n          http2_protocol_options:\n            initial_stream_window_size: 1048576\n            initial_connection_window_size: 8388608\n            connection_keepalive: {interval: 30s, timeout: 10s}\n", "        explicit_http_config: {http_protocol_options: {}}\n"}}, "storage-http2", ""},
	{"router's headers", "local", []edit{{"              suppress_envoy_headers: true", "              dynamic_stats: true"}}, "router", ""},
	{"xDS", "local", []edit{{"static_resources:\n", "dynamic_resources: {ads_config: {api_type: GRPC}}\nstatic_resources:\n"}}, "static-only", "dynamic_resources"},
	{"RDS", "local", []edit{{"  listeners:\n", "  listeners:\n" + strings.Replace(sideDoor, `route_config: {virtual_hosts: [{name: x, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: emulator.rest}}]}]}`, "rds: {route_config_name: x, config_source: {path_config_source: {path: /x}}}", 1)}}, "static-only", "rds"},
	{"EDS", "local", []edit{{"type: STATIC\n    per_connection_buffer_limit_bytes: 262144\n    circuit_breakers: {thresholds: [{max_connections", "type: EDS\n    eds_cluster_config: {eds_config: {ads: {}}}\n    circuit_breakers: {thresholds: [{max_connections"}}, "static-only", ""},
	{"runtime from disk", "local", []edit{{"static_resources:\n", "layered_runtime: {layers: [{name: x, disk_layer: {symlink_root: /x}}]}\nstatic_resources:\n"}}, "runtime", ""},
	{"runtime flag", "local", []edit{{"static_resources:\n", "layered_runtime: {layers: [{name: x, static_layer: {envoy.reloadable_features.x: false}}]}\nstatic_resources:\n"}}, "runtime", ""},
	{"tracing", "local", []edit{{"          merge_slashes: true\n", "          merge_slashes: true\n          tracing: {}\n"}}, "no-tracing", ""},
	{"header prefix", "local", []edit{{"static_resources:\n", "header_prefix: x-other\nstatic_resources:\n"}}, "envoy-headers", ""},
	{"token in the access log", "local", []edit{{`"%PATH(NQ)%"`, `"%REQ(Authorization)%"`}}, "access-log", ""},
	{"query in the access log", "local", []edit{{`"%PATH(NQ)%"`, `"%REQ(:PATH)%"`}}, "access-log", ""},
	{"query in the access log, new way", "local", []edit{{`"%PATH(NQ)%"`, `"%PATH(WQ)%"`}}, "access-log", ""},
	{"default access log", "odd", []edit{{"          merge_slashes: true\n", "          merge_slashes: true\n          access_log: [{name: x, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /x}}]\n"}}, "access-log", "access_log"},
	{"upstream without TLS", "local", []edit{{`endpoint: {hostname: "127.0.0.1:9050", address: {socket_address: {address: "127.0.0.1"`, `endpoint: {hostname: "127.0.0.1:9050", address: {socket_address: {address: "10.0.0.1"`}}, "plaintext", ""},
	{"roots that Envoy does not read", "production", []edit{{`            trusted_ca: {filename: "/etc/ssl/certs/ca-certificates.crt"}`, "            system_root_certs: {}"}}, "upstream-tls", ""},
	{"name not checked", "production", []edit{{"        auto_sni_san_validation: true\n", ""}}, "upstream-tls", ""},
	{"anything trusted", "production", []edit{{`            trusted_ca: {filename: "/etc/ssl/certs/ca-certificates.crt"}` + "\n", `            trusted_ca: {filename: "/etc/ssl/certs/ca-certificates.crt"}` + "\n            trust_chain_verification: ACCEPT_UNTRUSTED\n"}}, "upstream-tls", ""},
	{"listener filter", "local", []edit{{"    filter_chains:\n", "    listener_filters: [{name: x}]\n    filter_chains:\n"}}, "filters", ""},
	{"misspelt", "local", []edit{{"failure_mode_allow", "failure_mode_alow"}}, "parse", "failure_mode_alow"},
	{"twice", "local", []edit{{"failure_mode_allow: false\n", "failure_mode_allow: false\n              failure_mode_allow: true\n"}}, "parse", "failure_mode_allow"},
	{"not YAML", "local", []edit{{"static_resources:\n", "static_resources: {\n"}}, "parse", ""},
	{"two documents", "local", []edit{{"static_resources:\n", "stats_flush_interval: 5s\n---\nstatic_resources:\n"}}, "parse", ""},
}

const (
	overridden        = "                typed_per_filter_config: {envoy.filters.http.ext_proc: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute, disabled: true}}\n"
	secondExtProc     = "          - name: second\n            typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor, grpc_service: {envoy_grpc: {cluster_name: verbatim.processor}}}\n"
	clientCertificate = `          tls_certificates:
          - certificate_chain: {filename: "/etc/verbatim/envoy.pem"}
            private_key: {filename: "/etc/verbatim/envoy.key"}
`
	rbacText = `          - name: x
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  admitted:
                    permissions: [{any: true}]
                    principals:
                    - sourced_metadata:
                        metadata_source: DYNAMIC
                        metadata_matcher: {filter: verbatim, path: [{key: admitted}], value: {bool_match: true}}
`
	sideDoor = `  - name: side
    address: {socket_address: {address: 127.0.0.1, port_value: 1}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: side
          route_config: {virtual_hosts: [{name: x, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: emulator.rest}}]}]}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
`
	tcpDoor = `  - name: side
    address: {socket_address: {address: 127.0.0.1, port_value: 1}}
    filter_chains: [{filters: [{name: envoy.filters.network.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.TYPE}}]}]
`
)

func TestLintFindsEachBreach(t *testing.T) {
	bare := variants["local"]
	bare.Bare = true
	found := map[string]bool{}
	for _, c := range breaches {
		t.Run(c.name, func(t *testing.T) {
			p := variants[c.variant]
			if c.variant == "bare" {
				p = bare
			}
			b, err := Render(p)
			if err != nil {
				t.Fatal(err)
			}
			text := string(b)
			for _, e := range c.edits {
				if !strings.Contains(text, e.old) {
					t.Fatalf("the bootstrap has no %q", e.old)
				}
				text = strings.Replace(text, e.old, e.new, 1)
			}
			findings := Lint([]byte(text))
			for _, f := range findings {
				if f.Rule != c.rule {
					continue
				}
				found[f.Rule] = true
				lines := strings.Split(text, "\n")
				if f.Line == 0 && f.Rule == "parse" && c.line == "" {
					return
				}
				if f.Line < 1 || f.Line > len(lines) || f.Path == "" || f.Message == "" {
					t.Errorf("poor finding: %+v", f)
				} else if !strings.Contains(lines[f.Line-1], c.line) {
					t.Errorf("points at line %d, %q, not at %q", f.Line, lines[f.Line-1], c.line)
				}
				return
			}
			t.Errorf("%s was not found, but %v", c.rule, findings)
		})
	}
	// Each rule that the lint knows must have been tried.
	source, err := os.ReadFile("lint.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)l\.add\([^"\n]*(?:"[^"\n]*"[^"\n]*)?, "([a-z-]+)",|^\t"[a-z_]+": +\{"([a-z-]+)",`).FindAllStringSubmatch(string(source), -1) {
		if rule := m[1] + m[2]; !found[rule] {
			t.Errorf("no breach of the rule %s is tried", rule)
		}
	}
}

func TestLintAllowsAListenerThatAnswersByItself(t *testing.T) {
	b, err := Render(variants["local"])
	if err != nil {
		t.Fatal(err)
	}
	door := strings.Replace(sideDoor, "route: {cluster: emulator.rest}", "direct_response: {status: 200}", 1)
	for _, f := range Lint([]byte(strings.Replace(string(b), "  listeners:\n", "  listeners:\n"+door, 1))) {
		t.Error(f)
	}
	only := strings.Replace(string(b), "  listeners:\n", "  listeners:\n"+door+"  x:\n", 1)
	for _, text := range []string{"{}", only} {
		if len(Lint([]byte(text))) == 0 {
			t.Error("a bootstrap with no way to the processor passes")
		}
	}
}

func FuzzLint(f *testing.F) {
	for _, p := range variants {
		b, err := Render(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("{}"))
	f.Add([]byte("static_resources: {listeners: [{filter_chains: [{filters: [{}]}]}], clusters: [{}]}"))
	f.Add([]byte("&a [*a]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, finding := range Lint(text) {
			if finding.Rule == "" || finding.Message == "" {
				t.Errorf("%+v", finding)
			}
		}
	})
}
