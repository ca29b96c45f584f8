package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
	"google.golang.org/protobuf/proto"

	"verbatim.dev/recorder/kms/kmstest"
)

var doubles struct {
	sync.Mutex
	of map[string]*kmstest.Server // by the script's folder
}

// doubleKMS is the command that acts upon a double of Cloud KMS:
//
//	kms start                    sets KEY, SIGN (KEY's versions) and WRAP to the names of its keys
//	kms version NAME             adds a version to a key
//	kms fail FAULT METHOD TIMES  see kmstest
//	kms disable VERSION | kms enable VERSION
//	kms secret                   fails where a key's bytes are in a file or in what was printed
func doubleKMS(t *testing.T, ts *testscript.TestScript, args []string) {
	doubles.Lock()
	defer doubles.Unlock()
	dir := ts.Getenv("WORK")
	if args[0] == "start" {
		s := kmstest.New(t)
		if doubles.of == nil {
			doubles.of = map[string]*kmstest.Server{}
		}
		doubles.of[dir] = s
		const ring = "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/"
		ts.Setenv("TEST_KMS", s.Address)
		ts.Setenv("KEY", s.Key(ring+"deployment", true))
		ts.Setenv("SIGN", ts.Getenv("KEY")+"/cryptoKeyVersions")
		ts.Setenv("WRAP", s.Key(ring+"tenant", false))
		return
	}
	s := doubles.of[dir]
	switch args[0] {
	case "version":
		s.Version(args[1])
	case "fail":
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		s.Fail(kmstest.Fault(args[1]), args[2], n)
	case "disable", "enable":
		s.Disable(args[1], args[0] == "disable")
	case "secret":
		texts := map[string][]byte{"stdout": []byte(ts.ReadFile("stdout")), "stderr": []byte(ts.ReadFile("stderr"))}
		ts.Check(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				texts[path], err = os.ReadFile(path)
			}
			return err
		}))
		found := 0
		for _, plain := range s.Plaintexts() {
			var k tinkpb.Keyset
			ts.Check(proto.Unmarshal(plain, &k))
			// Older keys of it were in clear before.
			value := k.GetKey()[len(k.GetKey())-1].GetKeyData().GetValue()
			private := value[len(value)-32:]
			for _, form := range [][]byte{private, []byte(hex.EncodeToString(private)), []byte(base64.StdEncoding.EncodeToString(value))} {
				found++
				for where, b := range texts {
					if bytes.Contains(b, form) {
						ts.Fatalf("%s holds the private key", where)
					}
				}
			}
		}
		if found == 0 {
			ts.Fatalf("nothing was wrapped")
		}
	default:
		ts.Fatalf("kms %s?", args[0])
	}
}
