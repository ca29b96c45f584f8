// Package bundle makes and checks evidence to hand out: a zip file with some
// exchanges' records as they are stored, what proves each of them, and the data
// keys that open them.
//
// Its rule: a bundle proves with a deployment's public key alone, no vault at
// hand, and opens nothing that was not selected. What is left out between the
// records is there as Merkle hashes, so that nothing can be put in its place.
//
// A bundle holds
//
//	manifest.json         the selection, and for each epoch its checkpoint, the
//	                      sequences that are held, the hashes of the rest, and
//	                      what shows that the sink's own log, cosigned by
//	                      witnesses, has that checkpoint
//	records/EPOCH.frames  stored frames, back to back; the first is the open record
//	keys.json             data keys in clear: EPOCH/KEYID to base64
//	report.html           for reading
//	README.txt            how to verify it
//
// A data key seals what one session recorded in one epoch, payload or not. A
// bundle without payload holds no payload ciphertext, only its digests; but who
// has the bundle's keys and comes by that ciphertext, from the vault itself, can
// open it.
package bundle

import (
	"time"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/sinklog"
)

const (
	manifestFile = "manifest.json"
	keysFile     = "keys.json"
	reportFile   = "report.html"
	readmeFile   = "README.txt"

	version = 1
	// maxManifest is the largest manifest that is read, in bytes.
	maxManifest = 256 << 20
)

func framesFile(epoch string) string { return "records/" + epoch + ".frames" }

// Selection says what was asked for.
type Selection struct {
	Exchange string    `json:"exchange,omitempty"`
	Session  string    `json:"session,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Until    time.Time `json:"until,omitzero"`
}

// manifest is manifest.json.
type manifest struct {
	Version   int       `json:"version"`
	Made      time.Time `json:"made"`
	By        string    `json:"by"` // the program's version
	Selection Selection `json:"selection"`
	// Payload is false where payload records were withheld.
	Payload   bool     `json:"payload"`
	Exchanges []string `json:"exchanges"`
	Epochs    []epoch  `json:"epochs"`
	// Erased are data keys that the vault does not hold any more.
	Erased []string `json:"erased_keys,omitempty"`
}

type epoch struct {
	Epoch      string `json:"epoch"`
	Gateway    string `json:"gateway"`
	Checkpoint string `json:"checkpoint"` // signed note
	// Log shows that the sink's own log has the checkpoint, where the vault had
	// such a log and it had come so far.
	Log *sinklog.Inclusion `json:"log,omitempty"`
	// Records are the selected ones, by sequence.
	Records []entry `json:"records"`
	// Gaps are the hashes, in hex, of the largest subtrees between them.
	Gaps []string `json:"gaps"`
}

// entry is a record. One whose frame is not in the bundle has its leaf here.
type entry struct {
	Sequence uint64 `json:"sequence"`
	Leaf     string `json:"leaf,omitempty"` // hex
	Why      string `json:"why,omitempty"`  // "withheld" or "expired"
}

func keyName(e record.Epoch, id record.KeyID) string {
	return e.String() + "/" + hexText(id[:])
}
