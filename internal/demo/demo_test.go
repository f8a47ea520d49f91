package demo

import "testing"

func TestJudge(t *testing.T) {
	good := func() Result {
		return Result{Networks: []Network{
			{Name: "blue", Encrypted: true, PingsSent: 4, PingsReceived: 4, WirePackets: 9},
			{Name: "lab", PingsSent: 4, PingsReceived: 4, WirePackets: 9, WireReadable: 5},
		}, Rotation: Rotation{Rotations: 3, Sent: 1000}}
	}
	tests := []struct {
		name string
		edit func(*Result)
		ok   bool
	}{
		{"as promised", func(*Result) {}, true},
		{"a ping is lost", func(r *Result) { r.Networks[0].PingsReceived-- }, false},
		{"no ping was sent", func(r *Result) { r.Networks[0].PingsSent, r.Networks[0].PingsReceived = 0, 0 }, false},
		{"encrypted but readable", func(r *Result) { r.Networks[0].WireReadable = 1 }, false},
		{"nothing on the wire", func(r *Result) { r.Networks[0].WirePackets = 0 }, false},
		{"a packet is lost in a rotation", func(r *Result) { r.Rotation.Lost = 1 }, false},
		{"too few rotations", func(r *Result) { r.Rotation.Rotations = 2 }, false},
		{"nothing was sent meanwhile", func(r *Result) { r.Rotation.Sent = 0 }, false},
		{"positive control fails", func(r *Result) { r.Networks[1].WireReadable = 0 }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.edit(&r)
			if err := judge(r); (err == nil) != tt.ok {
				t.Errorf("judge = %v", err)
			}
		})
	}
}
