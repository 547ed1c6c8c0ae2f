cd /tmp/few; for nt in 3 8 32; do for b in mvt2 mvtp; do echo "nt $nt $b: $(NT=$nt ./$b 2048 256 2>/dev/null)"; done; done
