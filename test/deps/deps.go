package deps

import (
	_ "cloud.google.com/go/pubsub/v2"
	_ "cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	_ "cloud.google.com/go/pubsub/v2/pstest"
	_ "cloud.google.com/go/storage"
	_ "github.com/fsouza/fake-gcs-server/fakestorage"
	_ "github.com/klauspost/compress/zstd"
	_ "golang.org/x/mod/sumdb/note"
	_ "golang.org/x/mod/sumdb/tlog"
)
